"""Keeps the results of a job while it runs: handing it over then reads one file per thousand photos, and not one record per photo."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from producer.failures import Failures
from producer.results import Results
from shared.errors import JobDamagedError, StorageError
from shared.jobs import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.jobs import Job
    from shared.progress import Counts, Progress
    from shared.storage import Storage

log = logging.getLogger(__name__)


class Gatherer:
    """Gathers one job's results, a page of the item list at a time and in its order, as soon as all items of a page have ended."""

    def __init__(self, job: Job, destination: Storage, progress: Progress) -> None:
        self._job = job.id
        self._progress = progress
        self._results = Results(job, destination, progress)
        self._failures = Failures(destination, progress)
        self._next: int | None = None
        # The first item whose page is not known to be kept.

    def look(self, counts: Counts, seconds: float = math.inf, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Gather what has ended since the last look, for about `seconds`; return whether nothing of the job is left to gather.

        Failures that fill the broker are moved before. `meanwhile` is called after every page; what it raises ends it. A storage that does not answer is asked again at the next look.
        Raises `BrokerError`.
        """
        until = time.monotonic() + seconds
        try:
            self._failures.relieve(meanwhile)
            if self._next is None:
                self._next = self._results.kept()
            while self._has_ended(self._next, counts):
                self._results.keep(self._next)
                self._next += PAGE
                meanwhile()
                if time.monotonic() > until:
                    break
        except (StorageError, JobDamagedError) as error:
            log.warning("results are gathered later: %s", error, extra={"action": "wait", "job": self._job})
            return False
        return counts.finished and self._next >= counts.items

    def _has_ended(self, first: int, counts: Counts) -> bool:
        size = min(PAGE, counts.items - first)
        if size <= 0 or (size < PAGE and not counts.listed):
            return False  # it may grow
        return all(self._progress.ended(range(first, first + size)))
