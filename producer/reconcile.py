"""Closes the holes a broker leaves: items that are submitted, not ended and in no queue are sent again."""

from __future__ import annotations

import logging
import time
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from producer.gathering import Gatherer
from producer.pace import remember
from producer.publisher import Publisher
from producer.rebuild import rebuild
from producer.submit import Submitter
from shared.errors import LeaseHeldError
from shared.jobs import PAGE, read_page
from shared.lease import LONGEST_WAIT, Lease, feeding
from shared.progress import Progress
from shared.queues import in_flight

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from celery import Celery

    from shared.jobs import Job
    from shared.progress import Counts
    from shared.settings import Settings
    from shared.storage import Storage

log = logging.getLogger(__name__)

GRACE = 2
"""Looks over which an item must be in no queue: a worker that hands a message on holds it meanwhile, so that one would nearly do."""


class _LookedAfterError(Exception):
    """Another process looks after the job."""


class Reconciler:
    """Looks after one job. Several may look at once: a lease lets one of them act."""

    def __init__(
        self,
        app: Celery,
        client: redis.Redis,
        job: Job,
        destination: Storage,
        settings: Settings,
    ) -> None:
        every = settings.look_every
        self._app = app
        self._window = settings.window
        self._looks_into_queues = settings.queues_in_redis
        self._job = job
        self._destination = destination
        self._client = client
        self._progress = Progress(client, job.id)
        self._publisher = Publisher(app, priority=job.priority)
        self._gatherer = Gatherer(job, destination, self._progress)
        self._lease = Lease(client, f"keeper:{job.id}", "another process looks after the job", seconds=3 * every)
        self._feeding = Lease(client, feeding(job.id), "a producer feeds the job")
        self._submitter: Submitter | None = None
        # While what was listed is not all queued, and nobody else feeds the job.
        self._every = every
        self._grace = GRACE * every
        self._next = time.monotonic() + every
        self._missing: dict[int, float] = {}
        # Since when each unfinished item is in no queue.
        self.sent_again = 0
        """Items that the broker had lost."""

    def look(self, counts: Counts, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Look, when it is time to: send again what was lost, gather what has ended. Raises `BrokerError`, `StorageError`.

        `meanwhile` is called now and then of what takes long; what it raises ends it.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        try:
            self._hold()
            remember(self._client, self._job.id, counts)
            with self._lease.kept(LONGEST_WAIT):
                self._look(counts, partial(self._hold, meanwhile))
        except _LookedAfterError:
            self._missing.clear()
        self._next = time.monotonic() + self._every  # whoever feeds the job has that time, after a long look as well

    def gather(self, counts: Counts) -> bool:
        """Gather, for about as long as between two looks, what is left of a job that has ended; return whether that is all. Raises `BrokerError`."""
        try:
            self._hold()
            with self._lease.kept(LONGEST_WAIT):
                return self._gatherer.look(counts, self._every, self._hold)
        except _LookedAfterError:
            return True

    def _look(self, counts: Counts, meanwhile: Callable[[], None]) -> None:
        if not counts.known:
            log.warning(
                "the broker came back empty: working job %s out again", self._job.id, extra={"action": "rebuild"}
            )
            rebuild(self._job, self._destination, self._progress, lambda _: meanwhile())
            counts = self._progress.counts()
        elif counts.done + counts.failed < counts.sent and self._looks_into_queues:
            # RabbitMQ keeps its messages itself, and lets nobody look.
            self._send_again(counts.sent, meanwhile)
        if counts.listed and counts.sent < counts.items:
            # Else its producer goes on by itself, or another with `submit --resume`.
            self._top_up(counts, meanwhile)
        self._gatherer.look(counts, self._every, meanwhile)

    def _hold(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Take or renew the lease. Raises `_LookedAfterError` when another process has it: it may have been held up for longer than it lasts."""
        if not self._lease.acquire():
            raise _LookedAfterError
        meanwhile()

    def _top_up(self, counts: Counts, meanwhile: Callable[[], None]) -> None:
        try:
            with self._feeding as lease:
                if self._submitter is None or self._submitter.cursor != counts.sent:
                    self._submitter = Submitter(
                        self._app,
                        self._progress,
                        self._job,
                        self._destination,
                        window=self._window,
                        lease=lease,
                        tick=lambda _: meanwhile(),
                    )
                self._submitter.top_up()
        except LeaseHeldError:
            self._submitter = None

    def _send_again(self, sent: int, meanwhile: Callable[[], None]) -> None:
        unfinished = set(self._progress.unfinished(sent))
        flying = in_flight(self._client).get(self._job.id, set())
        now = time.monotonic()
        self._missing = {index: self._missing.get(index, now) for index in unfinished if index not in flying}
        lost = sorted(index for index, since in self._missing.items() if now - since >= self._grace)
        for first, indices in groupby(lost, lambda index: index // PAGE * PAGE):
            page = read_page(self._destination, self._job.id, first)
            items = [page[index - first] for index in indices]
            meanwhile()  # the broker and the storage may have taken their time
            log.warning("sending %d lost items again", len(items), extra={"action": "send_again", "job": self._job.id})
            self._publisher.publish(items, meanwhile)
            self.sent_again += len(items)
            for item in items:
                self._missing.pop(item.index)
