"""A job's storage that is down for everyone: its photos are put off, rather than fail one after the other or hold up other jobs."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.errors import StorageReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.errors import StorageError

log = logging.getLogger(__name__)

ENOUGH = 3
"""Different items of a job that fail in a row, with none that works in between, mean that it is not their fault."""
PROBES = 0.5, 15.0
"""Seconds before the first try of an outage, and the longest between two."""
TOLD_SECONDS = 60.0
"""Between two lines in the log."""
FORGOTTEN_SECONDS = 600.0
"""After the last fault of a job: it was cancelled, or another worker has it."""


@dataclass(slots=True)
class _Job:
    since: float
    last: float
    failed: set[int] = field(default_factory=set)
    next_probe: float = 0.0
    interval: float = PROBES[0]
    told: float = float("-inf")
    down: bool = False


class Outage:
    """What the tasks of a worker have seen of each job's storage. Called from many threads."""

    def __init__(self, patience: float) -> None:
        """After `patience` seconds an outage is no longer waited for: its items fail."""
        self._patience = patience
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}

    @property
    def down(self) -> bool:
        """Whether some job's storage is down for everyone."""
        with self._lock:
            self._forget()
            return any(job.down for job in self._jobs.values())

    def wait(self, name: str) -> float:
        """Return for how many seconds an item of a job is to be put off. 0 tells it to try: it is the one, or there is no outage."""
        now = time.monotonic()
        with self._lock:
            job = self._jobs.get(name)
            if job is None or not job.down or now - job.since >= self._patience:
                return 0.0
            if now >= job.next_probe:
                job.next_probe = now + job.interval
                return 0.0
            return job.interval

    def worked(self, name: str) -> None:
        """Note that an item of a job was read and written."""
        if name not in self._jobs:
            return
        with self._lock:
            job = self._jobs.pop(name, None)
        if job and job.down:
            log.info("the storage works again", extra={"action": "storage_back", "job": name})

    def failed(self, name: str, index: int, error: StorageError, *, answers: Callable[[], bool]) -> bool:
        """Note a fault, and tell whether to put the item off: the fault is not its own, and has not gone on for too long.

        `answers` asks the storage for something else.
        """
        dead = isinstance(error, StorageReadOnlyError) or (not self._is_down(name) and not answers())
        now = time.monotonic()
        with self._lock:
            self._forget()
            job = self._jobs.setdefault(name, _Job(now, now))
            job.last = now
            if not job.down:
                job.failed.add(index)
                job.since = now
                job.down = dead or len(job.failed) >= ENOUGH
            if not job.down:
                return False
            job.next_probe = now + job.interval
            job.interval = min(2 * job.interval, PROBES[1])
            if now - job.told > TOLD_SECONDS:
                job.told = now
                log.warning("the storage is down, pausing: %s", error, extra={"action": "storage_down", "job": name})
            return now - job.since < self._patience

    def _is_down(self, name: str) -> bool:
        with self._lock:
            return name in self._jobs and self._jobs[name].down

    def _forget(self) -> None:
        long_ago = time.monotonic() - FORGOTTEN_SECONDS
        for name in [name for name, job in self._jobs.items() if job.last < long_ago]:
            del self._jobs[name]
