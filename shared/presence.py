"""Which workers are there, and which of them have work: each says so every few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.connection import broker_errors

if TYPE_CHECKING:
    import redis

    from shared.keys import StageName

WORKERS = "vitrina:workers"
"""Names of workers, `stage@host`, with the time they last showed themselves."""
EVERY_SECONDS = 5
GONE_SECONDS = 20
"""A worker that did not show itself for this long is gone, or wedged."""


# KEYS: the workers, the busy ones of the stage. ARGV: the name, whether it is busy; seconds for which a worker is remembered, and believed to be busy.
# The time is the broker's, so that no machine's clock makes its workers look dead. Who counts the busy ones looks at nothing but their
# number: the dead are dropped by whoever of the stage shows itself, and when nobody does, the set goes as a whole. They are dropped first: a full
# server refuses a script that begins with what may take memory, and an autoscaler would then take the workers that could empty it.
_ANNOUNCE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[4])
redis.call('ZADD', KEYS[1], now, ARGV[1])
if ARGV[2] == '1' then
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
"""


def busy_key(stage: StageName) -> str:
    """Name the set of a stage's workers that hold messages. An autoscaler reads its size, and takes no more workers away than are idle."""
    return f"vitrina:busy:{stage}"


def announce(client: redis.Redis, stage: StageName, host: str, *, busy: bool) -> None:
    """Show a worker, and whether it has work. Raises `BrokerError`."""
    with broker_errors():
        client.eval(
            _ANNOUNCE, 2, WORKERS, busy_key(stage), f"{stage}@{host}", int(busy), 10 * GONE_SECONDS, GONE_SECONDS
        )


def leave(client: redis.Redis, stage: StageName, host: str) -> None:
    """Take a worker off the lists as it ends. Raises `BrokerError`."""
    name = f"{stage}@{host}"
    with broker_errors(), client.pipeline(transaction=False) as pipe:
        pipe.zrem(WORKERS, name)
        pipe.zrem(busy_key(stage), name)
        pipe.execute()


def present(client: redis.Redis) -> list[str]:
    """Name the workers that are there, sorted. Raises `BrokerError`."""
    with broker_errors():
        now: Any = client.time()
        found: Any = client.zrangebyscore(WORKERS, now[0] - GONE_SECONDS, "+inf")
    return sorted(name.decode() for name in found)
