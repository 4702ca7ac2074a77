"""A suspect runs alone: who started once and did not end may have killed its worker, or only have been beside the one that did.

Redis gives no count of deliveries, and a count of starts blames every neighbour of a poisoned photo. So a first start is
free; an item that starts again waits until nothing else runs in this process and runs alone, and only starts made alone convict it.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.2
"""Between two looks at whether the worker is shutting down, while waiting."""


class StoppedError(Exception):
    """The worker is shutting down: whoever waits hands its message back."""


class Quarantine:
    """Many run side by side, or one alone. A suspect that waits goes before those that come after it."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._changed = threading.Condition()
        self._running = 0
        self._waiting = 0
        self._alone = False

    @contextmanager
    def among_others(self) -> Iterator[None]:
        """Run beside others. Raises `StoppedError` instead when the worker stops first."""
        with self._changed:
            self._wait(lambda: not self._alone and not self._waiting)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run while nothing else does. Raises `StoppedError` instead when the worker stops first."""
        with self._changed:
            self._waiting += 1
            try:
                self._wait(lambda: not self._alone and not self._running)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool]) -> None:
        while not self._stopping():
            if self._changed.wait_for(free, LOOK_SECONDS):
                return
        raise StoppedError
