"""The keeper: looks after every job the broker knows, so that none depends on a producer that stays."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from producer.follow import Summary
from producer.reconcile import Reconciler
from producer.sealing import seal
from shared.broker import make_app
from shared.connection import broker_errors, connect
from shared.errors import BrokerError, JobDamagedError, JobNotFoundError, StorageError, VitrinaError
from shared.jobs import Job, list_jobs, load_summary
from shared.keys import job_prefix
from shared.lease import LONGEST_WAIT, SECONDS, Lease
from shared.progress import Progress, known_jobs
from shared.storage import open_storage

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from shared.settings import Settings
    from shared.storage import Storage

log = logging.getLogger(__name__)

KEPT = "vitrina:kept"
"""Set by a keeper; gone when the broker came back empty."""


class _StoppedError(Exception):
    """The keeper was told to stop amid a look."""


class _StandbyError(Exception):
    """Another keeper is the active one; it may have become so amid a look, when this one was held up for longer than it has the lease."""


class Keeper:
    """One of any number that run is active, by a lease; the others wait to take over."""

    def __init__(self, settings: Settings, outs: Sequence[str] = ()) -> None:
        """`outs` are output storages whose jobs are looked after even when the broker comes back empty."""
        self._settings = settings
        self._client = connect(settings)
        self._app = make_app(settings)
        self._lease = Lease(
            self._client, "keeper", "another keeper is active", seconds=max(SECONDS, 3 * settings.look_every)
        )
        self._outs = [open_storage(out, settings) for out in outs]
        self._watched: dict[str, tuple[Job, Storage, Reconciler]] = {}
        self._lost: set[str] = set()
        # Jobs that have not ended and that the broker has forgotten.
        self._sealed: dict[str, float] = {}
        # When the jobs had last changed that it has sealed.
        self._gather_until = 0.0
        # Until when a look gathers results of jobs that have ended: those that go on must not wait for all of them.
        self._stepped = time.monotonic()
        # When it last got on: to the next look, job or page.
        self.active: bool | None = None
        """Whether this one does the work; None before its first look."""
        self.looked = 0.0
        """When it last reached the broker, in seconds since the epoch."""

    @property
    def alive(self) -> bool:
        """Whether it gets on: one that hangs, in a storage that never answers, had better be ended and started again."""
        return time.monotonic() - self._stepped < LONGEST_WAIT + self._settings.look_every

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set. What fails is logged and tried again at the next look."""
        try:
            while not stop.is_set():
                self._stepped = time.monotonic()
                try:
                    self.look(stop)
                except BrokerError as error:
                    log.warning("%s", error, extra={"action": "wait"})
                except _StoppedError:
                    break
                stop.wait(self._settings.look_every)
        finally:
            self._lease.release()  # the next need not wait until it has run out
            self._app.close()

    def look(self, stop: threading.Event) -> None:
        """Look at every job once, for as long as this is the active keeper. Raises `BrokerError`."""
        with suppress(_StandbyError):
            self._hold(stop)
            self._gather_until = time.monotonic() + self._settings.look_every
            with self._lease.kept(LONGEST_WAIT):
                self._look_at_all(stop)

    def _look_at_all(self, stop: threading.Event) -> None:
        for job in self._jobs():
            self._hold(stop)
            try:
                self._look_at(job, stop)
            except (BrokerError, _StoppedError, _StandbyError):
                raise
            except VitrinaError as error:
                log.warning("job %s: %s", job, error, extra={"action": "keeper_failed", "job": job})
            except Exception:  # a fault in one job must not leave the others alone
                log.exception("job %s", job, extra={"action": "keeper_failed", "job": job})

    def _hold(self, stop: threading.Event) -> None:
        """Take or renew the lease, which a long look at one job must not cost. Raises `_StandbyError` when another has it."""
        self._stepped = time.monotonic()
        if stop.is_set():
            raise _StoppedError
        active = self._lease.acquire()
        self.looked = time.time()
        if active != self.active:
            log.info("active" if active else "standing by: another keeper is active", extra={"action": "keeper"})
            self.active = active
        if not active:
            raise _StandbyError

    def _jobs(self) -> list[str]:
        """Name the jobs the broker knows and, when it came back empty, those whose records lie where this keeper was told to look."""
        with broker_errors():
            if not self._client.exists(KEPT):
                for out in self._outs:
                    try:
                        self._lost |= {job for job in list_jobs(out) if load_summary(out, job) is None}
                    except (StorageError, JobDamagedError) as error:
                        log.warning("%s", error, extra={"action": "keeper_failed"})
                self._client.set(KEPT, 1)
        known = known_jobs(self._client)
        self._lost.difference_update(known)
        return [*known, *self._lost]

    def _look_at(self, job: str, stop: threading.Event) -> None:
        progress = Progress(self._client, job)
        counts = progress.counts()
        sealed = counts.finished and self._sealed.get(job) == counts.changed
        if sealed and job not in self._watched:
            return
        if job not in self._watched:
            self._watched[job] = self._open(job)
        record, destination, reconciler = self._watched[job]
        if not counts.finished:
            reconciler.look(counts, lambda: self._hold(stop))
            return
        if not sealed:
            seconds = max(0.0, (counts.changed or time.time()) - record.created)
            summary = Summary.of(job, counts, seconds)
            seal(destination, progress, summary, if_absent=True, meanwhile=lambda: self._hold(stop))
            progress.expire()
            log.info("sealed", extra={"action": "sealed", "job": job})
            self._sealed[job] = counts.changed
        if time.monotonic() < self._gather_until and reconciler.gather(counts):
            del self._watched[job]

    def _open(self, job: str) -> tuple[Job, Storage, Reconciler]:
        where = Progress(self._client, job).destination()
        for destination in [open_storage(where, self._settings)] if where else self._outs:
            if destination.head(job_prefix(job) + "job.json") is not None:
                record = Job.load(job, destination)
                reconciler = Reconciler(self._app, self._client, record, destination, self._settings)
                return record, destination, reconciler
        raise JobNotFoundError(
            f"there are no records of job {job}: were they deleted? `vitrina purge` forgets a job whole"
        )
