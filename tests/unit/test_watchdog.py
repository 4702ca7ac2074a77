"""When a worker counts as wedged: by a clock of the test's own, so that a busy machine changes nothing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

import pytest

from workers.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator

REAL = time.monotonic
TASK, STALL = 8.0, 4.0


class Watched:
    """A watchdog that notes what it would have ended the process for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        monkeypatch.setattr("workers.watchdog.TURN_SECONDS", 0.001)
        monkeypatch.setattr("workers.watchdog.time.monotonic", lambda: self.clock)
        self.waiting = True
        self.said: list[str] = []
        self.dog = Watchdog(
            task_deadline=TASK,
            stall_deadline=STALL,
            waiting=lambda: self.waiting,
            on_wedged=lambda what, _: self.said.append(what),
        )

    def __enter__(self) -> Self:
        self.dog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.dog.close()

    def turn(self) -> None:
        """Wait until it has looked once at what is now."""
        for _ in range(2):
            self.clock += 1e-6
            until = REAL() + 60
            while self.dog._turned != self.clock:
                assert REAL() < until
                time.sleep(0.001)

    def said_after(self, seconds: float) -> list[str]:
        """Let time pass, a second at most between two looks."""
        end = self.clock + seconds
        while self.clock < end:
            self.clock = min(end, self.clock + 1)
            self.turn()
        return self.said


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    with Watched(monkeypatch) as one:
        one.dog.expect_tasks()
        yield one


def test_a_worker_that_takes_nothing_yet_is_not_asked_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it waits for a broker after it has loaded its model; loading itself has its end."""
    monkeypatch.setattr("workers.watchdog.LOAD_SECONDS", 2 * TASK)
    with Watched(monkeypatch) as starting:
        with starting.dog.loading():
            assert starting.said_after(2 * TASK - 1) == []
        assert starting.said_after(5 * STALL) == []
        with starting.dog.loading():
            assert starting.said_after(2 * TASK + 1)[0] == "the loading of a model is past its deadline"
        starting.said.clear()
        starting.dog.expect_tasks()
        assert starting.said_after(STALL + 1)[0] == "nothing gets on although there is work"


def test_tasks_that_are_there_and_do_nothing_are_a_stall(watched: Watched) -> None:
    """Wherever they are stuck outside their work: their messages would be held, and renewed, for ever."""
    with watched.dog.task(), watched.dog.task():
        assert watched.said_after(STALL - 1) == []
        assert watched.said_after(2)[0] == "nothing gets on although there is work"


def test_whoever_waits_for_the_broker_gets_on(watched: Watched) -> None:
    """However long that takes: it comes back to look, and says so."""
    with watched.dog.task():
        for _ in range(5):
            assert watched.said_after(STALL - 1) == []
            watched.dog.rest()


def test_others_may_wait_for_as_long_as_one_works(watched: Watched) -> None:
    """Such as for a suspect, which runs alone; its own deadline ends the process, and not theirs."""
    working, leave = threading.Event(), threading.Event()

    def work() -> None:
        with watched.dog.work():
            working.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert working.wait(60)
    with watched.dog.task():
        assert watched.said_after(TASK - 1) == []
        leave.set()
        thread.join()
        assert watched.said_after(STALL - 1) == []
        assert watched.said_after(2)[0] == "nothing gets on although there is work"


def test_a_suspect_has_a_deadline_of_its_own(watched: Watched) -> None:
    """The shorter one counts, also after a rest."""
    with watched.dog.work(TASK / 4):
        assert watched.said_after(TASK / 4 - 1) == []
        watched.dog.rest()
        assert watched.said_after(TASK / 4 - 1) == []
        assert watched.said_after(2)[0] == "a task is past its deadline"
    watched.said.clear()
    with watched.dog.work(4 * TASK):
        assert watched.said_after(TASK - 1) == []
        assert watched.said_after(2)[0] == "a task is past its deadline"


def test_work_that_has_just_come_is_no_stall(watched: Watched) -> None:
    """A worker that had nothing to do for long, or no broker, has the whole deadline from then on."""
    watched.waiting = False
    assert watched.said_after(5 * STALL) == []
    watched.waiting = True
    assert watched.said_after(STALL - 1) == []
    assert watched.said_after(2)[0] == "nothing gets on although there is work"
