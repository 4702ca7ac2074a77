"""What lies in the broker's queues: how many messages wait, and whose they are."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

from shared.connection import broker_errors
from shared.keys import QUEUES, STAGES, StageName

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


def oldest(client: redis.Redis) -> dict[str, float]:
    """Return for how many seconds the message that is next in each queue has waited; 0 for an empty queue. Raises `BrokerError`."""
    with broker_errors(), client.pipeline(transaction=True) as pipe:
        for queue in QUEUES:
            pipe.lindex(queue, -1)
        messages = pipe.execute()
    return {queue: _waited(_parsed(message or b"")) for queue, message in zip(QUEUES, messages, strict=True)}


def held(client: redis.Redis) -> dict[StageName, int]:
    """Count what the workers of each stage hold, waiting retries included. Raises `BrokerError`.

    Every held message is read, which are as many as all workers have threads.
    """
    with broker_errors():
        records: Any = client.hvals(UNACKED)
    stages = [_routed(_parsed(record)).partition(".")[0] for record in records]
    return {stage: stages.count(stage) for stage in STAGES}


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
        yield from map(_parsed, queue)
    for record in map(_parsed, held):
        yield record[0] if isinstance(record, list) and record else None  # message, exchange, routing key


def _waited(message: Any) -> float:
    try:
        return max(0.0, time.time() - float(message["headers"]["published"]))  # the clocks of two machines differ
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0  # not ours, or none


def _routed(record: Any) -> str:
    try:
        return str(record[2])  # message, exchange, routing key
    except (KeyError, IndexError, TypeError):
        return ""  # not ours


def _parsed(message: bytes) -> Any:
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        return None  # as below


def _item(message: Any) -> tuple[str | None, int]:
    try:
        body = message["body"]
        if message["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        item = json.loads(body)[0][0]
        return str(item["job"]), int(item["index"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError):
        return None, 0  # not ours: the worker refuses it
