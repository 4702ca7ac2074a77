"""A job's progress in Redis: a bitmap per stage and the failures. Setting a bit twice counts once.

100 M items are 12.5 MB a stage. Everything here can be worked out again from storage.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from shared.errors import BrokerError, UsageError
from shared.keys import STAGES, StageName

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis.client import Pipeline

    from shared.settings import Settings

LAST: StageName = STAGES[-1]
KEEP_SECONDS = 90 * 24 * 3600
"""A job's progress is dropped from Redis this long after its photos were listed or it was summed up; storage keeps the outcome.

Its keys are made with this expiry before any item is sent, so that nothing stays of a job that nobody follows.
"""

FULL = "the broker's memory is full: let its queues drain, or raise its maxmemory"

# A failure never overwrites a finished item: a message delivered twice may fail the second time. KEYS: failures, done, info.
# ARGV: index, failure, seconds to keep.
_FAIL = """
if redis.call('GETBIT', KEYS[2], ARGV[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[3], 'changed', redis.call('TIME')[1])
return 1
"""
# In one step, so that no count ever sees an item both done and failed. KEYS: done, attempts, ran in an earlier stage, ran, review,
# failures, info. ARGV: index, whether this stage ran, whether to review, whether it is the last stage.
_FINISH = """
if ARGV[4] == '0' then
  if ARGV[2] == '1' then redis.call('SETBIT', KEYS[3], ARGV[1], 1) end
else
  if ARGV[2] == '1' or redis.call('GETBIT', KEYS[3], ARGV[1]) == 1 then redis.call('SETBIT', KEYS[4], ARGV[1], 1) end
  if ARGV[3] == '1' then redis.call('SETBIT', KEYS[5], ARGV[1], 1) end
  redis.call('HDEL', KEYS[6], ARGV[1])
  redis.call('HSET', KEYS[7], 'changed', redis.call('TIME')[1])
end
redis.call('SETBIT', KEYS[1], ARGV[1], 1)
redis.call('HDEL', KEYS[2], ARGV[1])
"""


def connect(settings: Settings) -> redis.Redis:
    """Open a client that rides out short breaks. Nothing is sent until first use. Raises `UsageError` for what is no Redis address."""
    try:
        return redis.Redis.from_url(
            settings.broker.get_secret_value(),
            socket_timeout=30,  # longer than any command here takes, shorter than a person waits
            socket_connect_timeout=5,
            health_check_interval=25,
            retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=2), retries=5),
            retry_on_error=[redis.exceptions.ConnectionError, redis.exceptions.TimeoutError],
        )
    except ValueError:
        # The error would quote the address, and a password that is not percent-encoded ends up in any part of it.
        msg = "not a broker address: use redis://host:port/db, with the password's special characters percent-encoded"
        raise UsageError(msg) from None


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn redis-py's errors into `BrokerError` with the next step."""
    try:
        yield
    except redis.exceptions.AuthenticationError as error:
        msg = f"the broker refuses our password: check VITRINA_BROKER ({error})"
        raise BrokerError(msg) from None
    except redis.exceptions.OutOfMemoryError:
        raise BrokerError(FULL) from None
    except redis.exceptions.RedisError as error:
        msg = f"the broker does not answer: start it, or check --broker ({error})"
        raise BrokerError(msg) from None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item did not become outputs."""

    index: int
    key: str
    stage: StageName | str
    reason: str
    """A stable word, see `shared.errors`."""
    detail: str
    """A sentence for a person."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a job is. `done + failed == items` once `listed` and nothing is left."""

    items: int
    """Listed so far."""
    listed: bool
    """The whole source has been listed."""
    stages: Mapping[StageName, int]
    """Items through each stage."""
    done: int
    """Items with every output, those in need of review included."""
    needs_review: int
    failed: int
    skipped: int
    """Of the done: items whose outputs an earlier job had made."""
    changed: float = 0.0
    """When the last item was finished or failed, in seconds since the epoch; 0 when none was."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.listed and self.done + self.failed >= self.items


class Progress:
    """The progress of one job. Raises `BrokerError`."""

    def __init__(self, client: redis.Redis, job: str) -> None:
        self._redis = client
        self._name = f"vitrina:job:{job}"
        self._info = f"{self._name}:info"
        self._failures = f"{self._name}:failures"
        self._ran = f"{self._name}:ran"
        self._ran_earlier = f"{self._name}:ran:earlier"
        self._review = f"{self._name}:review"
        self._fail = client.register_script(_FAIL)
        self._finish = client.register_script(_FINISH)

    def _done(self, stage: StageName) -> str:
        return f"{self._name}:done:{stage}"

    def _attempts(self, stage: StageName) -> str:
        return f"{self._name}:attempts:{stage}"

    def _bitmaps(self) -> list[str]:
        return [*map(self._done, STAGES), self._ran, self._ran_earlier, self._review]

    def begin(self, destination: str) -> None:
        """Tell the workers where the job's records are."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._info, mapping={"destination": destination})
            # Only what exists can be given an expiry, and a hash would go with its last field and take it along.
            for bitmap in self._bitmaps():
                pipe.set(bitmap, b"", nx=True)
            for stage in STAGES:
                pipe.hset(self._attempts(stage), "", 0)
            self._expire(pipe)
            pipe.execute()

    def destination(self) -> str | None:
        """Return where the job's records are; None for an unknown job."""
        with broker_errors():
            value: Any = self._redis.hget(self._info, "destination")
        return value.decode() if value is not None else None

    def listed(self, items: int, *, complete: bool) -> None:
        """Record how many items were listed so far."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._info, mapping={"items": items, "listed": int(complete)})
            self._expire(pipe)
            pipe.execute()

    def finish(self, stage: StageName, index: int, *, ran: bool, review: bool) -> None:
        """Record that an item is through a stage, and forget its starts there.

        `ran` is false when an earlier job had made the output; `review` is of the last stage, which knows the doubts of all.
        """
        earlier = [self._done(stage), self._attempts(stage), self._ran_earlier]
        with broker_errors():
            self._finish(
                [*earlier, self._ran, self._review, self._failures, self._info],
                [index, int(ran), int(review), int(stage == LAST)],
            )

    def fail(self, failure: Failure) -> None:
        """Record why an item stops, unless it is already finished."""
        value = json.dumps({name: v for name, v in asdict(failure).items() if name != "index"})
        with broker_errors():
            self._fail([self._failures, self._done(LAST), self._info], [failure.index, value, KEEP_SECONDS])

    def attempt(self, stage: StageName, index: int) -> int:
        """Count a start of an item in a stage and return how many there have been."""
        with broker_errors():
            return int(self._redis.hincrby(self._attempts(stage), str(index), 1))

    def clear_attempts(self, stage: StageName, index: int) -> None:
        """Forget the starts of an item that has ended."""
        with broker_errors():
            self._redis.hdel(self._attempts(stage), str(index))

    def counts(self) -> Counts:
        """Count everything at one moment, writing nothing."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._info)
            for stage in STAGES:
                pipe.bitcount(self._done(stage))
            pipe.hlen(self._failures)
            pipe.bitcount(self._review)
            pipe.bitcount(self._ran)
            info, *rest = pipe.execute()
        through, (failed, review, ran) = rest[: len(STAGES)], rest[len(STAGES) :]
        done = through[-1]
        return Counts(
            items=int(info.get(b"items", 0)),
            listed=info.get(b"listed") == b"1",
            stages=dict(zip(STAGES, through, strict=True)),
            done=done,
            needs_review=review,
            failed=failed,
            skipped=done - ran,
            changed=float(info.get(b"changed", 0)),
        )

    def failures(self) -> Iterator[Failure]:
        """Yield the failures, in no order, without holding them all."""
        with broker_errors():
            for index, value in self._redis.hscan_iter(self._failures, count=1000):
                yield Failure(index=int(index), **json.loads(value))

    def outcome_bits(self) -> tuple[bytes, bytes, bytes]:
        """Return the bitmaps of items finished, and of these in need of review and run in this job; most significant bit first."""
        with broker_errors():
            bitmaps: Any = self._redis.mget(self._done(LAST), self._review, self._ran)
        done, review, ran = (bitmap or b"" for bitmap in bitmaps)
        return done, review, ran

    def expire(self) -> None:
        """Let Redis forget the job after `KEEP_SECONDS`."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            self._expire(pipe)
            pipe.execute()

    def _expire(self, pipe: Pipeline) -> None:
        for name in (self._info, self._failures, *self._bitmaps(), *map(self._attempts, STAGES)):
            pipe.expire(name, KEEP_SECONDS)


class NoProgress(Progress):
    """The progress of a job whose broker has gone with it: nothing is known, as of a job that a broker has forgotten."""

    def __init__(self) -> None:
        """Ask nobody."""

    def destination(self) -> None:
        """Know of no records."""

    def counts(self) -> Counts:
        """Count nothing."""
        return Counts(0, listed=False, stages=dict.fromkeys(STAGES, 0), done=0, needs_review=0, failed=0, skipped=0)

    def failures(self) -> Iterator[Failure]:
        """Know of no failure."""
        return iter(())

    def outcome_bits(self) -> tuple[bytes, bytes, bytes]:
        """Know of no outcome."""
        return b"", b"", b""
