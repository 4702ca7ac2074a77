"""Ends a worker that is wedged, with every thread's stack in the log, so that its supervisor starts a healthy one; beats while it is not."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workers.batcher import exit_wedged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

TURN_SECONDS = 1.0
LOOKS = 10
"""How often within the stall deadline it is asked whether there is work."""
LOAD_SECONDS = 1800.0
"""Longest time to load a model, and to compile it."""
STALE_SECONDS = 30.0
"""A worker whose watchdog did not turn for this long is held up as a whole: longer than any call holds the interpreter's lock."""


class Watchdog:
    """A thread that looks once a second.

    A task that works for longer than its deadline is wedged. So is a worker in which no task works and none has begun, ended or rested for
    `stall_deadline`, although `waiting` said each time that there is work: messages in its queues, or such as it holds. `waiting` is asked
    seldom, answers within seconds, and raises nothing.
    """

    def __init__(
        self,
        *,
        task_deadline: float,
        stall_deadline: float,
        waiting: Callable[[], bool],
        heartbeat: Path | None = None,
        on_wedged: Callable[[str, float], None] = lambda what, seconds: exit_wedged(seconds, what),
    ) -> None:
        self._task_deadline = task_deadline
        self._stall_deadline = stall_deadline
        self._waiting = waiting
        self._heartbeat = heartbeat
        self._on_wedged = on_wedged
        self._working: dict[int, tuple[float, float, str]] = {}
        # By thread: since when it works, for how long it may, and what that is.
        self._asked = self._turned = time.monotonic()
        self._changed = math.inf
        # Not yet: whoever loads a model, or waits for a broker, takes nothing.
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Beat, and look at tasks, from now on."""
        self._thread.start()

    def expect_tasks(self) -> None:
        """Look from now on whether any are taken: the worker says that it takes them."""
        self._changed = time.monotonic()

    def close(self) -> None:
        """Look no more; the heartbeat file goes."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._heartbeat:
            self._heartbeat.unlink(missing_ok=True)

    @property
    def alive(self) -> bool:
        """Whether the process is not held up as a whole."""
        return time.monotonic() - self._turned < STALE_SECONDS

    @contextmanager
    def task(self) -> Iterator[None]:
        """Note that a task begins and ends: the worker gets on."""
        self._changed = time.monotonic()
        try:
            yield
        finally:
            self._changed = time.monotonic()

    @contextmanager
    def work(self, deadline: float = math.inf) -> Iterator[None]:
        """Watch over the work of this thread's task: it may not take longer than `deadline` seconds, nor than the deadline of all."""
        with self._watching("a task", min(deadline, self._task_deadline)):
            yield

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Watch over the loading of a model."""
        with self._watching("the loading of a model", LOAD_SECONDS):
            yield

    @contextmanager
    def _watching(self, what: str, deadline: float) -> Iterator[None]:
        me = threading.get_ident()
        self._working[me] = time.monotonic(), deadline, what
        try:
            yield
        finally:
            self._working.pop(me, None)

    def rest(self) -> None:
        """Begin this thread's deadline anew: what it waited for was not its own work."""
        me, now = threading.get_ident(), time.monotonic()
        self._changed = now
        if me in self._working:
            self._working[me] = now, *self._working[me][1:]

    def _watch(self) -> None:
        while not self._stop.wait(min(TURN_SECONDS, self._task_deadline / 4, self._stall_deadline / 4)):
            now = self._turned = time.monotonic()
            if self._heartbeat:
                self._beat(self._heartbeat)
            working = self._working.copy().values()
            late = [(now - since, what) for since, deadline, what in working if now - since > deadline]
            if late:
                seconds, what = max(late)
                self._on_wedged(f"{what} is past its deadline", seconds)
            if working:
                # It has a deadline of its own, for which all others may wait; a worker that takes nothing yet is not late either.
                self._changed = max(now, self._changed)
            elif self._stalls(now):
                self._on_wedged("nothing gets on although there is work", now - self._changed)

    def _stalls(self, now: float) -> bool:
        """Tell whether there has been work for the whole deadline, and nothing came of it."""
        if now - max(self._changed, self._asked) < self._stall_deadline / LOOKS:
            return False
        self._asked = now
        if not self._waiting():
            self._changed = now
        return now - self._changed > self._stall_deadline

    @staticmethod
    def _beat(file: Path) -> None:
        try:
            file.touch()
        except OSError as error:
            log.warning("cannot write the heartbeat %s: %s", file, error.strerror, extra={"action": "heartbeat"})
