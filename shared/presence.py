"""Which workers are there: each says so every few seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shared.connection import broker_errors

if TYPE_CHECKING:
    import redis

WORKERS = "vitrina:workers"
"""Names of workers, `stage@host`, with the time they last showed themselves."""
EVERY_SECONDS = 5.0
GONE_SECONDS = 20.0
"""A worker that did not show itself for this long is gone, or wedged."""


def announce(client: redis.Redis, name: str) -> None:
    """Show a worker. Raises `BrokerError`."""
    with broker_errors(), client.pipeline(transaction=False) as pipe:
        pipe.zadd(WORKERS, {name: time.time()})
        pipe.zremrangebyscore(WORKERS, "-inf", time.time() - 10 * GONE_SECONDS)
        pipe.execute()


def leave(client: redis.Redis, name: str) -> None:
    """Take a worker off the list as it ends. Raises `BrokerError`."""
    with broker_errors():
        client.zrem(WORKERS, name)


def present(client: redis.Redis) -> list[str]:
    """Name the workers that are there, sorted. Raises `BrokerError`."""
    with broker_errors():
        found: Any = client.zrangebyscore(WORKERS, time.time() - GONE_SECONDS, "+inf")
    return sorted(name.decode() for name in found)
