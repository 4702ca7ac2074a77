"""What lies in the broker's queues: how many messages wait, and whose they are."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from shared.connection import broker_errors
from shared.keys import QUEUES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

UNACKED = "unacked"
"""kombu's hash of the messages that workers hold."""


def depths(client: redis.Redis) -> dict[str, int]:
    """Count what waits in each queue, and what workers hold as `running`. Raises `BrokerError`."""
    with broker_errors(), client.pipeline(transaction=True) as pipe:
        for queue in QUEUES:
            pipe.llen(queue)
        pipe.hlen(UNACKED)
        return dict(zip([*QUEUES, "running"], pipe.execute(), strict=True))


def in_flight(client: redis.Redis) -> dict[str, set[int]]:
    """Return the indices of the items, by job, that wait in a queue or are held by a worker, at one moment. Raises `BrokerError`.

    Every message is read: call it where the queues are bounded by windows, and seldom.
    """
    with broker_errors(), client.pipeline(transaction=True) as pipe:
        # In one transaction: an item that moves on meanwhile would be seen nowhere.
        for queue in QUEUES:
            pipe.lrange(queue, 0, -1)
        pipe.hvals(UNACKED)
        *queues, held = pipe.execute()
    found: dict[str, set[int]] = {}
    for message in _messages(queues, held):
        job, index = _item(message)
        if job is not None:
            found.setdefault(job, set()).add(index)
    return found


def _messages(queues: list[list[bytes]], held: list[bytes]) -> Iterator[Any]:
    for queue in queues:
        yield from map(json.loads, queue)
    for record in held:
        yield json.loads(record)[0]  # message, exchange, routing key


def _item(message: dict[str, Any]) -> tuple[str | None, int]:
    try:
        body = message["body"]
        if message["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        item = json.loads(body)[0][0]
        return str(item["job"]), int(item["index"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None, 0  # not ours: the worker refuses it
