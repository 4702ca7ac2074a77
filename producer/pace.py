"""How fast a job goes at present; since it was made it may have been paused, or have ended and begun again."""

from __future__ import annotations

import json
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shared.connection import broker_errors
from shared.keys import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import redis

    from shared.keys import StageName
    from shared.progress import Counts, Progress

MINUTE = 60.0
EVERY = 1.0
"""Seconds between two looks that are kept: sixty are enough."""
REMEMBERED = 120
"""Looks that the broker keeps of a job, and for how many seconds after the last."""


class Pace:
    """Images per second through each stage over the last minute, from a job's counts as they come."""

    def __init__(self, looks: Iterable[tuple[float, Mapping[StageName, int]]] = ()) -> None:
        """Go on from earlier `looks`: when, in seconds on the clock that `look` is told, and how many items were through each stage."""
        self._looks: deque[tuple[float, Mapping[StageName, int]]] = deque()
        # From the last one that is a minute old, or the first, to the newest.
        self._counts: Counts | None = None
        for now, stages in looks:
            self._add(now, stages)

    def look(self, counts: Counts, now: float) -> None:
        """Take notice of the newest counts, at a time in seconds."""
        self._counts = counts
        if _goes_on(counts):
            self._add(now, counts.stages)
        else:
            self._looks.clear()

    def _add(self, now: float, stages: Mapping[StageName, int]) -> None:
        if self._looks and any(stages[stage] < self._looks[-1][1][stage] for stage in STAGES):
            self._looks.clear()  # some of it was taken back, to be run again
        if not self._looks or now - self._looks[-1][0] >= EVERY:
            self._looks.append((now, stages))
        while len(self._looks) > 1 and now - self._looks[1][0] >= MINUTE:
            self._looks.popleft()

    def rate(self, stage: StageName) -> float | None:
        """Return images per second; None until there are two looks."""
        if not self._looks:
            return None
        (start, first), (end, last) = self._looks[0], self._looks[-1]
        return (last[stage] - first[stage]) / (end - start) if end > start else None

    def left(self, stage: StageName) -> float | None:
        """Return in how many seconds all items will be through a stage; None while the source is being listed, or at a standstill."""
        if self._counts is None or not self._counts.listed:
            return None
        longest = 0.0
        # A stage that keeps up ends when the ones before it do.
        for each in STAGES[: STAGES.index(stage) + 1]:
            waiting = self._counts.items - self._counts.failed - self._counts.stages[each]
            if waiting > 0:
                rate = self.rate(each)
                if not rate:
                    return None
                longest = max(longest, waiting / rate)
        return longest


def tell_rate(rate: float | None) -> str:
    """Write images per second; nothing where that is not known."""
    return "" if rate is None else f"{rate:.{1 if rate >= 1 else 2}f} images/s"


def tell_left(seconds: float | None) -> str:
    """Write when all will be through; nothing where that is not known, or is so."""
    return f"ETA {timedelta(seconds=round(seconds))}" if seconds else ""


def tell_stages(stages: Mapping[str, tuple[int, float | None]]) -> str:
    """Write how many items are through each stage, and at which rate."""
    told = ((f"{label} {through}", tell_rate(rate)) for label, (through, rate) in stages.items())
    return ", ".join(f"{each} ({rate})" if rate else each for each, rate in told)


def _goes_on(counts: Counts) -> bool:
    # What is through before anything is queued was made earlier, and found in storage.
    return counts.state == "running" and counts.sent > 0


def remember(client: redis.Redis, job: str, counts: Counts) -> None:
    """Leave a look at a job to those who ask for its pace but once. Raises `BrokerError`."""
    with broker_errors():
        if not _goes_on(counts):
            client.delete(_name(job))
            return
        seconds, micros = client.time()
        with client.pipeline(transaction=True) as pipe:
            pipe.rpush(_name(job), json.dumps([seconds + micros / 1e6, dict(counts.stages)]))
            pipe.ltrim(_name(job), -REMEMBERED, -1)
            pipe.expire(_name(job), REMEMBERED)
            pipe.execute()


def pace_of(client: redis.Redis, progress: Progress) -> Pace:
    """Work the pace of a job out from the looks of whoever looks after it. Raises `BrokerError`."""
    counts = progress.counts()
    if counts.finished:
        return Pace()
    with broker_errors():
        looks: Any = client.lrange(_name(progress.job), 0, -1)
        seconds, micros = client.time()
    pace = Pace(json.loads(look) for look in looks)
    pace.look(counts, seconds + micros / 1e6)
    return pace


def _name(job: str) -> str:
    return f"vitrina:job:{job}:looks"
