"""A storage that is down for everyone pauses the worker, rather than fail one photo after the other."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from workers.quarantine import LOOK_SECONDS, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.errors import StorageError

log = logging.getLogger(__name__)

ENOUGH = 3
"""Different items that fail in a row, with none that works in between, mean that it is not their fault."""
PROBES = 0.5, 15.0
"""Seconds before the first try of an outage, and the longest between two; one task tries, the others wait."""
TOLD_SECONDS = 60.0
"""Between two lines in the log."""


class Outage:
    """What the tasks of a worker have seen of the storage. Called from many threads."""

    def __init__(self, stopping: Callable[[], bool], patience: float) -> None:
        """After `patience` seconds an outage is no longer waited for: its items fail."""
        self._stopping = stopping
        self._patience = patience
        self._lock = threading.Lock()
        self._failed: set[tuple[str, int]] = set()
        self._since = 0.0
        self._next_probe = 0.0
        self._interval = PROBES[0]
        self._told = 0.0

    @property
    def down(self) -> bool:
        """Whether the storage is down for everyone."""
        return len(self._failed) >= ENOUGH

    def worked(self) -> None:
        """Note that a task has read and written."""
        if not self._failed:
            return
        with self._lock:
            if len(self._failed) >= ENOUGH:
                log.info("the storage works again", extra={"action": "storage_back"})
            self._failed.clear()

    def failed(self, job: str, index: int, error: StorageError) -> bool:
        """Note a fault, and tell whether to wait and try again: it is not this item's, and has not gone on for too long."""
        now = time.monotonic()
        with self._lock:
            down = len(self._failed) >= ENOUGH
            self._failed.add((job, index))
            if len(self._failed) < ENOUGH:
                return False
            if not down:
                self._since, self._interval, self._told = now, PROBES[0], 0.0
            self._next_probe = now + self._interval
            self._interval = min(2 * self._interval, PROBES[1])
            if now - self._told > TOLD_SECONDS:
                self._told = now
                log.warning("the storage is down, pausing: %s", error, extra={"action": "storage_down"})
            if len(self._failed) > 10 * ENOUGH:  # as many as matter
                self._failed = set(list(self._failed)[:ENOUGH])
            return now - self._since < self._patience

    def wait(self) -> None:
        """Wait while the storage is down; one task at a time is let through to try. Raises `StoppedError`."""
        while self.down:
            with self._lock:
                now = time.monotonic()
                if now >= self._next_probe:
                    self._next_probe = now + self._interval
                    return
            if self._stopping():
                raise StoppedError
            time.sleep(LOOK_SECONDS)
