"""A job's progress in Redis: a bitmap per stage and one of the failed; why they did, or the last of them did. Setting a bit twice counts once.

100 M items are 12.5 MB a stage. Everything here can be worked out again from storage.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from shared.bitmap import bit, packed, places
from shared.connection import broker_errors
from shared.errors import ProgressLostError
from shared.keys import STAGES, StageName
from shared.progress_scripts import ATTEMPT, FAIL, FINISH, FORGET, RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import redis
    from redis.client import Pipeline


LAST: StageName = STAGES[-1]
KEEP_SECONDS = 90 * 24 * 3600
"""A job's progress is dropped from Redis this long after its photos were listed or it was summed up; storage keeps the outcome.

Its keys are made with this expiry before any item is sent, so that nothing stays of a job that nobody follows.
"""

JOBS = "vitrina:jobs"
"""Every job the broker knows, with the time of its start."""
CHUNK = 1 << 20
"""Bytes of a bitmap read at once."""

State = Literal["running", "paused", "cancelled"]


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
    sent: int = 0
    """Items queued at least once: all below this index."""
    state: State = "running"
    known: bool = True
    """False when the broker has forgotten the job."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.listed and self.done + self.failed >= self.items


class Progress:
    """The progress of one job. Raises `BrokerError`."""

    def __init__(self, client: redis.Redis, job: str) -> None:
        self._redis = client
        self.job = job
        """The job's id."""
        self._name = f"vitrina:job:{job}"
        self._info = f"{self._name}:info"
        self._failed = f"{self._name}:failed"
        self._failures = f"{self._name}:failures"
        self._ran = f"{self._name}:ran"
        self._ran_earlier = f"{self._name}:ran:earlier"
        self._review = f"{self._name}:review"
        self._reasons = f"{self._name}:failures:reasons"
        self._attempt = client.register_script(ATTEMPT)
        self._forget = client.register_script(FORGET)
        self._fail = client.register_script(FAIL)
        self._finish = client.register_script(FINISH)
        self._release = client.register_script(RELEASE)

    def _done(self, stage: StageName) -> str:
        return f"{self._name}:done:{stage}"

    def _attempts(self, stage: StageName) -> str:
        return f"{self._name}:attempts:{stage}"

    def _bitmaps(self) -> list[str]:
        return [*map(self._done, STAGES), self._failed, self._ran, self._ran_earlier, self._review]

    def begin(self, destination: str) -> None:
        """Make the job known, of which nothing is queued yet: tell the workers where its records are."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._info, mapping={"destination": destination, "sent": 0})
            pipe.zadd(JOBS, {self.job: time.time()}, nx=True)
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

    def sent(self, items: int) -> State:
        """Record that all items below this index were queued, and tell what the job's operator wants. Raises `ProgressLostError`."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(self._info, ["destination", "state"])
            pipe.hset(self._info, "sent", str(items))
            self._expire(pipe)
            known, state = pipe.execute()[0]
        if known is None:
            raise ProgressLostError("the broker came back empty")
        return _state(state)

    def set_state(self, state: State) -> None:
        """Tell producer and workers what the job's operator wants."""
        with broker_errors():
            self._redis.hset(self._info, "state", state)

    def ended(self, indices: Sequence[int]) -> list[bool]:
        """Tell of each item whether it is done or has failed."""
        if not indices:
            return []
        low, high = min(indices) >> 3, max(indices) >> 3
        bits = self._ended(low, high)
        return [bit(bits, index - 8 * low) for index in indices]

    def _ended(self, first: int, last: int) -> bytes:
        """Read which items are done or have failed, from one byte of the bitmaps to another; with all of these."""
        length = last - first + 1
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.getrange(self._done(LAST), first, last)
            pipe.getrange(self._failed, first, last)
            done, failed = (int.from_bytes(bits.ljust(length, b"\0")) for bits in pipe.execute())
        return (done | failed).to_bytes(length)

    def done_of(self, first: int, count: int) -> bytes:
        """Return the bitmap of finished items from the index `first`, a multiple of 8, on; most significant bit first."""
        return self._bits_of(self._done(LAST), first, count)

    def ran_of(self, first: int, count: int) -> bytes:
        """Return the bitmap, like that of the finished ones, of items that ran in this job."""
        return self._bits_of(self._ran, first, count)

    def _bits_of(self, bitmap: str, first: int, count: int) -> bytes:
        with broker_errors():
            bits: Any = self._redis.getrange(bitmap, first >> 3, (first + count - 1) >> 3)
        return bytes(bits)

    def failures_of(self, indices: Sequence[int]) -> dict[int, Failure | None]:
        """Return the failures among these items, by index; None for one that is not held here any more."""
        if not indices:
            return {}
        low, high = min(indices) >> 3, max(indices) >> 3
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.getrange(self._failed, low, high)
            pipe.hmget(self._failures, [str(index) for index in indices])
            bits, values = pipe.execute()
        return {
            index: _failure(index, value) if value is not None else None
            for index, value in zip(indices, values, strict=True)
            if bit(bits, index - 8 * low)
        }

    def holds(self) -> int:
        """Count the failures that are held here."""
        with broker_errors():
            return int(self._redis.hlen(self._failures))

    def held(self) -> Iterator[Failure]:
        """Yield them in no order; what changes meanwhile may be missed, or come twice."""
        with broker_errors():
            for index, value in self._redis.hscan_iter(self._failures, count=1000):
                yield _failure(int(index), value)

    def moment(self) -> int:
        """Return the broker's time in microseconds."""
        with broker_errors():
            seconds, microseconds = self._redis.time()
        return int(seconds) * 1_000_000 + int(microseconds)

    def unfinished(self, sent: int) -> Iterator[int]:
        """Yield the items below the index `sent` that are neither done nor failed."""
        length = (sent + 7) >> 3
        for first in range(0, length, CHUNK):
            ended = self._ended(first, min(first + CHUNK, length) - 1)
            yield from (index for index in places(ended, 8 * first, value=0) if index < sent)

    def forget(self, reasons: Mapping[int, str], since: StageName = STAGES[0]) -> None:
        """Take items for unfinished from the stage `since` on: they are to be run again. `reasons` tells for what each failed, if it did."""
        stages = STAGES[STAGES.index(since) :]
        per_stage = [key for stage in stages for key in (self._done(stage), self._attempts(stage))]
        with broker_errors():
            self._forget(
                [
                    self._failed,
                    self._failures,
                    self._reasons,
                    self._ran_earlier,
                    self._ran,
                    self._review,
                    *per_stage,
                ],
                [word for index, reason in reasons.items() for word in (index, reason)],
            )

    def finish(self, stage: StageName, index: int, *, ran: bool, review: bool) -> None:
        """Record that an item is through a stage, and forget its starts there.

        `ran` is false when an earlier job had made the output; `review` is of the last stage, which knows the doubts of all.
        """
        earlier = [self._done(stage), self._attempts(stage), self._ran_earlier]
        with broker_errors():
            self._finish(
                [*earlier, self._ran, self._review, self._failed, self._failures, self._info, self._reasons],
                [index, int(ran), int(review), int(stage == LAST), KEEP_SECONDS],
            )

    def restore(
        self, first: int, done: Mapping[StageName, Sequence[bool]], *, ran: Sequence[bool], review: Sequence[bool]
    ) -> None:
        """Record at once what is known of consecutive items, from the index `first` on, a multiple of 8; what was known before goes."""
        flags = {self._done(stage): of for stage, of in done.items()} | {self._ran: ran, self._review: review}
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            for name, of in flags.items():
                pipe.setrange(name, first >> 3, packed(of))
            self._expire(pipe)
            pipe.execute()

    def fail(self, failure: Failure) -> None:
        """Record why an item stops, unless it is already finished."""
        with broker_errors():
            self._fail(
                [self._failed, self._failures, self._done(LAST), self._info, self._reasons],
                [failure.index, _value(failure), failure.reason, KEEP_SECONDS],
            )

    def release(self, failures: Sequence[Failure]) -> None:
        """Hold these failures no more, but for the bits that tell of them: they are kept elsewhere, and stand as they are until they are forgotten."""
        with broker_errors():
            self._release([self._failures], [word for each in failures for word in (each.index, _value(each))])

    def attempt(self, stage: StageName, index: int) -> tuple[int, State]:
        """Count a start of an item in a stage; return how many there have been since it last ended, and what the job's operator wants."""
        with broker_errors():
            starts, state = self._attempt([self._attempts(stage), self._info], [index, KEEP_SECONDS])
        return int(starts), _state(state)

    def attempt_alone(self, stage: StageName, index: int) -> int:
        """Count a start of an item while nothing else runs in its worker, and return how many there have been since it last ended."""
        with broker_errors():
            return int(self._redis.hincrby(self._attempts(stage), f"{index}:alone", 1))

    def clear_attempts(self, stage: StageName, index: int) -> None:
        """Forget the starts of an item that has ended."""
        with broker_errors():
            self._redis.hdel(self._attempts(stage), str(index), f"{index}:alone")

    def counts(self) -> Counts:
        """Count everything at one moment, writing nothing."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._info)
            for stage in STAGES:
                pipe.bitcount(self._done(stage))
            pipe.bitcount(self._failed)
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
            sent=int(info.get(b"sent", 0)),
            state=_state(info.get(b"state")),
            known=b"destination" in info,
        )

    def reasons(self) -> dict[str, int]:
        """Count the failures by reason, the most frequent first."""
        with broker_errors():
            found: Any = self._redis.hgetall(self._reasons)
        counted = {reason.decode(): int(number) for reason, number in found.items() if int(number) > 0}
        return dict(sorted(counted.items(), key=lambda pair: -pair[1]))

    def failed(self) -> Iterator[int]:
        """Yield the items that failed, without holding them all."""
        first = 0
        while bits := self._bits_of(self._failed, first, 8 * CHUNK):
            yield from places(bits, first, value=1)
            first += 8 * CHUNK

    def outcome_bits(self) -> tuple[bytes, bytes, bytes]:
        """Return the bitmaps of items finished, and of these in need of review and run in this job; most significant bit first."""
        with broker_errors():
            bitmaps: Any = self._redis.mget(self._done(LAST), self._review, self._ran)
        done, review, ran = (bitmap or b"" for bitmap in bitmaps)
        return done, review, ran

    def drop(self) -> None:
        """Forget the job at once."""
        with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(JOBS, self.job)
            pipe.delete(*self._names())
            pipe.execute()

    def expire(self) -> None:
        """Let Redis forget the job after `KEEP_SECONDS`."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            self._expire(pipe)
            pipe.execute()

    def _names(self) -> list[str]:
        return [self._info, self._failures, self._reasons, *self._bitmaps(), *map(self._attempts, STAGES)]

    def _expire(self, pipe: Pipeline) -> None:
        for name in self._names():
            pipe.expire(name, KEEP_SECONDS)


def known_jobs(client: redis.Redis) -> list[str]:
    """Name the jobs the broker knows, the newest first. Raises `BrokerError`."""
    with broker_errors():
        old: Any = client.zrangebyscore(JOBS, "-inf", time.time() - KEEP_SECONDS)
        gone = [name for name in old if Progress(client, name.decode()).destination() is None]
        if gone:  # a job may go on for longer
            client.zrem(JOBS, *gone)
        found: Any = client.zrevrange(JOBS, 0, -1)
    return [name.decode() for name in found]


def _failure(index: int, value: bytes) -> Failure:
    return Failure(index=index, **json.loads(value))


def _value(failure: Failure) -> str:
    return json.dumps({name: value for name, value in asdict(failure).items() if name != "index"})


def _state(value: bytes | None) -> State:
    return cast("State", value.decode()) if value else "running"


class NoProgress(Progress):
    """The progress of a job whose broker has gone with it: nothing is known, as of a job that a broker has forgotten."""

    def __init__(self) -> None:
        """Ask nobody."""

    def destination(self) -> None:
        """Know of no records."""

    def counts(self) -> Counts:
        """Count nothing."""
        none = dict.fromkeys(STAGES, 0)
        return Counts(0, listed=False, stages=none, done=0, needs_review=0, failed=0, skipped=0, known=False)

    def failed(self) -> Iterator[int]:
        """Know of no failure."""
        return iter(())

    def reasons(self) -> dict[str, int]:
        """Know of no failure."""
        return {}

    def drop(self) -> None:
        """Know of nothing to forget."""

    def outcome_bits(self) -> tuple[bytes, bytes, bytes]:
        """Know of no outcome."""
        return b"", b"", b""
