"""Climbing a ladder within its time: one way that fails or takes too long costs only itself."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.ladder.ways import Rung

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.ladder.timing import Bench
    from bench.ladder.ways import Way


AGAIN = 2.0
"""Seconds after which whoever has not stopped is told again."""


class OutOfTime(BaseException):
    """The stage's time is up. Like KeyboardInterrupt it ends whatever runs, and no library may take it for an error of its own."""


@contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """Raise `OutOfTime` in whatever the main thread does at `deadline` (`time.monotonic`)."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: what is raised while Python tidies an object up is lost.
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()), AGAIN)
    try:
        yield
    finally:
        disarm()
        signal.signal(signal.SIGALRM, before)


def disarm() -> None:
    """Raise `OutOfTime` no more."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def climb(ways: Iterable[Way], bench: Bench) -> Iterator[Rung]:
    """Measure every way, in order. Within `time_limit`: the way at which the time is up is stopped, and the rest are skipped."""
    late = False
    for way in ways:
        if late:
            yield Rung(way=way, lost="skipped: no time left")
            continue
        try:
            rung = bench.measure(way)
        except OutOfTime:
            disarm()
            late = True
            rung = Rung(way=way, lost="stopped: no time left")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one way, the others still count
            rung = Rung(way=way, lost=failure(error))
        bench.free()  # after an error too, once its traceback holds nothing any more
        yield rung


def failure(error: Exception) -> str:
    """Say in a line what went wrong."""
    first = str(error).strip().partition("\n")[0][:150]
    return f"failed: {type(error).__name__}: {first}" if first else f"failed: {type(error).__name__}"
