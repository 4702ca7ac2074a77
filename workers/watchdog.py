"""Ends a worker that is wedged, with every thread's stack in the log, so that its supervisor starts a healthy one; beats while it is not."""

from __future__ import annotations

import logging
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
STALE_SECONDS = 30.0
"""A worker whose watchdog did not turn for this long is held up as a whole: longer than any call holds the interpreter's lock."""


class Watchdog:
    """A thread that looks once a second.

    A task that works for longer than `task_deadline` is wedged. So is a worker in which no task began or ended for `stall_deadline` although
    `waiting` says that there is work; `waiting` is asked seldom, and raises nothing.
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
        self._working: dict[int, float] = {}
        # By thread: since when its task works.
        self._present = 0
        self._changed = self._turned = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._changed = time.monotonic()
        self._thread.start()

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
        """Count a task that is there, working or waiting for something that may take its time."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Watch over the work of this thread's task: it may not take longer than the deadline."""
        me = threading.get_ident()
        self._working[me] = time.monotonic()
        try:
            yield
        finally:
            self._working.pop(me, None)

    def rest(self) -> None:
        """Begin this thread's deadline anew: what it waited for was not its own work."""
        if threading.get_ident() in self._working:
            self._working[threading.get_ident()] = time.monotonic()

    def _count(self, change: int) -> None:
        with self._lock:
            self._present += change
            self._changed = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(TURN_SECONDS, self._task_deadline / 4, self._stall_deadline / 4)):
            now = self._turned = time.monotonic()
            if self._heartbeat:
                self._beat(self._heartbeat)
            since = min(self._working.copy().values(), default=now)
            if now - since > self._task_deadline:
                self._on_wedged("a task is past its deadline", now - since)
            with self._lock:
                idle = not self._present and now - self._changed > self._stall_deadline
                self._changed = now if idle else self._changed
            if idle and self._waiting():
                self._on_wedged("nothing is taken although there is work", self._stall_deadline)

    @staticmethod
    def _beat(file: Path) -> None:
        try:
            file.touch()
        except OSError as error:
            log.warning("cannot write the heartbeat %s: %s", file, error.strerror, extra={"action": "heartbeat"})
