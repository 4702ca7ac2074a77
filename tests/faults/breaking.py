"""A broker that restarts, forgets, fills up and cannot be reached."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import redis
from lab import Lab, Outcome
from proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESTART_RECOVERY = 10.0
"""Seconds within which a restarted broker's work goes on."""


def restarts(folder: Path, *, items: int = 2400, times: int = 20, seconds: float = 300) -> Outcome:
    """Restart the broker under load, by SIGTERM and by SIGKILL in turn; it comes back with its append-only file."""
    with Lab(folder, each=1) as lab:
        for number in range(items):
            lab.say(f"{number:05d}", f"slow:0.0{number % 5 + 1}")
        session = lab.session()
        done = 0
        came_back: tuple[float, int] | None = None
        recoveries: list[float] = []

        def restart() -> None:
            nonlocal done, came_back
            with suppress(redis.exceptions.RedisError):
                counts = session.progress.counts()
                through = sum(counts.stages.values())
                if came_back and through > came_back[1]:
                    recoveries.append(time.monotonic() - came_back[0])
                    came_back = None
                # Spread over the whole job, with enough of it left for the last.
                if done < times and came_back is None and counts.done >= items * (done + 1) / (times + 3):
                    os.kill(lab.broker.pid, signal.SIGKILL if done % 2 else signal.SIGTERM)
                    lab.broker.stop()
                    time.sleep(lab.chance.uniform(0.1, 1.5))
                    lab.broker.start()
                    lab.broker.wait()
                    came_back = time.monotonic(), through
                    done += 1

        lab.run(session, restart, seconds=seconds)
        outcome = lab.audit(session)
        outcome.slowest_recovery_seconds = round(max(recoveries, default=0.0), 1)
        outcome.also = {"restarts": done}
        outcome.expect("every restart was made", done == times)
        outcome.expect("nothing failed", outcome.failed == 0)
        outcome.expect_within(RESTART_RECOVERY, outcome.slowest_recovery_seconds, "work goes on")
        return outcome


def _once(
    lab: Lab, when: int, seconds: float, begin: Callable[[], None], end: Callable[[], None], items: int
) -> Outcome:
    """Do something to the broker when some items are done, undo it `seconds` later, and count."""
    for number in range(items):
        lab.say(f"{number:05d}", "slow:0.03")
    session = lab.session()
    began = ended = 0.0
    through = 0

    def act() -> None:
        nonlocal began, ended, through
        if not began and session.progress.counts().done >= when:
            begin()
            began = time.monotonic()
        if began and not ended and time.monotonic() > began + seconds:
            end()
            ended = time.monotonic()
            through = session.progress.counts().done
        elif ended and not recovered and session.progress.counts().done > through:
            recovered.append(time.monotonic() - ended)

    recovered: list[float] = []
    lab.run(session, act, seconds=120 + 3 * seconds)
    outcome = lab.audit(session)
    outcome.slowest_recovery_seconds = round(max(recovered, default=0.0), 1)
    outcome.expect("it was done, and undone", ended)
    outcome.expect("nothing failed", outcome.failed == 0)
    return outcome


def wiped(folder: Path, *, items: int = 1000) -> Outcome:
    """Wipe the broker empty in the middle of a job: what is done stays done, the rest is made."""
    with Lab(folder) as lab:
        return _once(lab, items // 3, 0.0, lambda: None, lab.client.flushdb, items)


def full(folder: Path, *, items: int = 600, seconds: float = 10.0) -> Outcome:
    """Let the broker's memory be full for a while: everything waits, and goes on."""
    with Lab(folder) as lab:
        return _once(
            lab,
            items // 3,
            seconds,
            lambda: lab.client.config_set("maxmemory", "1mb"),
            lambda: lab.client.config_set("maxmemory", "0"),
            items,
        )


class Remote(Lab):
    """A laboratory whose workers and producer reach the broker through a proxy."""

    def __enter__(self) -> Self:
        port = urlsplit(self.broker.url).port
        assert port is not None
        self.proxy = Proxy(port).__enter__()
        address = f"redis://127.0.0.1:{self.proxy.port}/0"
        self.settings = self.settings.model_copy(update={"broker": type(self.settings.broker)(address)})
        try:
            super().__enter__()
        except BaseException:
            self.proxy.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.proxy.__exit__()


def partition(folder: Path, *, items: int = 300, seconds: float = 20.0) -> Outcome:
    """Let nothing through to the broker for a while, longer than the lease, with every connection left open."""
    return unreachable(folder, items=items, seconds=seconds, silent=True)


def unreachable(folder: Path, *, items: int = 600, seconds: float = 60.0, silent: bool = False) -> Outcome:
    """Cut the network to the broker for a minute."""
    with Remote(folder) as lab, redis.Redis.from_url(lab.broker.url):
        for number in range(items):
            lab.say(f"{number:05d}", "slow:0.03")
        change = lab.proxy.silence if silent else lab.proxy.block
        session = lab.session()
        cut = mended = 0.0
        recovered: list[float] = []
        through = 0

        def mend() -> None:
            nonlocal mended
            change(yes=False)
            mended = time.monotonic()

        # By the clock, whoever may be waiting for an answer then.
        mending = threading.Timer(seconds, mend)

        def act() -> None:
            nonlocal cut, through
            if not cut and session.progress.counts().done >= items // 3:
                through = session.progress.counts().done
                change(yes=True)
                cut = time.monotonic()
                mending.start()
            elif mended and not recovered and session.progress.counts().done > through + 10:
                recovered.append(time.monotonic() - mended)

        lab.run(session, act, seconds=120 + 2 * seconds)
        outcome = lab.audit(session)
        outcome.slowest_recovery_seconds = round(max(recovered, default=0.0), 1)
        outcome.expect("the network was cut and mended", mended)
        outcome.expect("nothing failed", outcome.failed == 0)
        return outcome


def slow_network(folder: Path, *, items: int = 400, delay: float = 0.02, cut: float = 0.002) -> Outcome:
    """Delay every block to and from the broker, and cut connections now and then."""
    with Remote(folder) as lab:
        for number in range(items):
            lab.say(f"{number:05d}", "slow:0.01")
        lab.proxy.delay, lab.proxy.cut = delay, cut
        session = lab.session()
        lab.run(session, seconds=240)
        outcome = lab.audit(session)
        outcome.expect("nothing failed", outcome.failed == 0)
        return outcome
