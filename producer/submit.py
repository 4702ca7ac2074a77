"""Feeds photos to the queues through a bounded window of unfinished ones."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING

from producer.failures import Failures
from producer.patience import Answer, patiently
from producer.publisher import Publisher
from shared.errors import JobCancelledError, KeyRefusedError, ObjectMissingError, ProgressLostError, UsageError
from shared.jobs import ItemList, read_pages, save_listed
from shared.keys import check_source_key
from shared.messages import MAX_INDEX
from shared.progress import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from celery import Celery

    from shared.jobs import Job
    from shared.keys import StageName
    from shared.lease import Lease
    from shared.messages import Item, Photo
    from shared.progress import Counts, Progress, State
    from shared.storage import Storage

BATCH = 200
"""Chains published over one connection before the window is looked at again."""
POLL_SECONDS = 0.2


class Submitter:
    """Feeds one job that the broker knows. Holds one page of items in memory, and keeps at most `window` unfinished images in the queues.

    Every method raises `BrokerError`, `StorageError`, and `LeaseLostError` when another producer has taken the job over.
    """

    def __init__(
        self,
        app: Celery,
        progress: Progress,
        job: Job,
        destination: Storage,
        *,
        window: int,
        lease: Lease | None = None,
        tick: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        """`tick` is called while waiting, with the last known counts."""
        self._progress = progress
        self._job = job
        self._destination = destination
        self._window = window
        self._lease = lease
        self._tick = tick
        self._failures = Failures(destination, progress)
        self.items = ItemList.open(destination, job.id)
        self._publisher = Publisher(app, priority=job.priority)
        self._counts = counts = progress.counts()
        self._state: State = counts.state
        self._cursor = counts.sent
        # The window is kept over what is unfinished: in the queues when this producer began, and sent since, less what has ended since.
        self._unfinished = self._before = max(0, counts.sent - counts.done - counts.failed)
        self._ended = counts.done + counts.failed
        self._sent = 0

    def feed(self, photos: Iterable[Photo], *, complete: bool = True) -> int:
        """Submit further photos and return how many there were; `complete` says that no more will come.

        Ends early when the job is cancelled; what was listed until then is in the job's record.
        """
        began = self.items.count
        waiting = iter(photos)
        while self._state != "cancelled" and (page := list(itertools.islice(waiting, self.items.room))):
            if self.items.count + len(page) > MAX_INDEX:
                raise UsageError(f"a job holds at most {MAX_INDEX} photos: split the source by prefix")
            self._check_lease()
            items = self.items.append(page)
            self._listed(complete=False)
            self.send(items)
        if complete or self._state == "cancelled":
            save_listed(self._destination, self._job.id, self.items.count)
            self._listed(complete=True)
        return self.items.count - began

    def catch_up(self) -> int:
        """Queue what an earlier producer listed and did not queue, or queued before the broker came back empty; return how many."""
        caught = 0
        for past, waiting in self._unsent():
            caught += len(waiting)
            self.send(waiting)
            self._passed(past)
        self._listed(complete=False)
        return caught

    def top_up(self) -> None:
        """Queue of the same as much as the window has room for now."""
        self._look()
        for past, waiting in self._unsent():
            self._meanwhile()
            left = waiting
            while left and (room := self._room()) > 0:
                self.send(left[:room])
                left = left[room:]
            if left:
                return
            self._passed(past)

    def _unsent(self) -> Iterator[tuple[int, list[Item]]]:
        """Yield the items that were listed and not queued, a page at a time, each page with the index past it."""
        for page in read_pages(self._destination, self._job.id, since=self._cursor):
            left = [item for item in page if item.index >= self._cursor]
            ended = self._patiently(partial(self._progress.ended, [item.index for item in left]))
            yield page[-1].index + 1, [item for item, over in zip(left, ended, strict=True) if not over]

    def _passed(self, cursor: int) -> None:
        if not self.cancelled:
            self._mark_sent(cursor)

    def again(
        self, items: Sequence[Item], since: StageName, clear: Callable[[Sequence[Item]], None] = lambda _: None
    ) -> None:
        """Run items of one page again that have ended, from the stage `since` on; `clear` makes room for some, once they count as unfinished."""
        failed = self._patiently(partial(self._failures.of, [item.index for item in items]))
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            indices = [item.index for item in batch]
            self._ended -= sum(self._patiently(partial(self._progress.ended, indices)))
            reasons = {index: failed[index].reason if index in failed else "" for index in indices}
            self._patiently(partial(self._progress.forget, reasons, since))
            clear(batch)
            self.send(batch)

    @property
    def cursor(self) -> int:
        """The index below which all items were queued."""
        return self._cursor

    @property
    def cancelled(self) -> bool:
        """Whether the job was, when it was last looked at."""
        return self._state == "cancelled"

    def go_on(self) -> None:
        """Look again at what the job's operator wants."""
        self._state = self._progress.counts().state

    def send(self, items: Sequence[Item]) -> None:
        """Queue items as the window has room; of a job that is cancelled, record them as such."""
        position = 0
        while position < len(items):
            self._check_lease()
            if self._state == "cancelled":
                self._cancel(items[position:])
                return
            room = self._room()
            if room <= 0:
                self._wait()
                continue
            batch = items[position : position + room]
            self._publisher.publish([item for item in batch if self._accepted(item)], self._meanwhile)
            self._sent += len(batch)
            self._unfinished += len(batch)
            position += len(batch)
            self._mark_sent(batch[-1].index + 1)

    def _room(self) -> int:
        """Return how many items may be queued before the state is looked at again."""
        if self.cancelled:
            return BATCH
        return 0 if self._state == "paused" else min(BATCH, self._window - self._unfinished)

    def _wait(self) -> None:
        self._look()
        self._tick(self._counts)
        # Half a window of hysteresis: few large publishes rather than many of one or two.
        if self._unfinished > self._window // 2 or self._state == "paused":
            time.sleep(POLL_SECONDS)
            self._unfinished = max(self._unfinished, self._window)

    def _look(self) -> None:
        self._counts = counts = self._patiently(self._progress.counts)
        if not counts.known:
            raise ProgressLostError("the broker came back empty")
        self._state = counts.state
        self._unfinished = self._before + self._sent - (counts.done + counts.failed - self._ended)

    def _mark_sent(self, cursor: int) -> None:
        self._cursor = max(cursor, self._cursor)
        self._state = self._patiently(lambda: self._progress.sent(self._cursor))

    def _cancel(self, items: Sequence[Item]) -> None:
        for item in items:
            self._fail(item, JobCancelledError.reason, "the job was cancelled")

    def _fail(self, item: Item, reason: str, detail: str) -> None:
        failure = Failure(item.index, shown(item.key), "listing", reason, detail)
        self._patiently(lambda: self._progress.fail(failure))

    def _listed(self, *, complete: bool) -> None:
        self._patiently(lambda: self._progress.listed(self.items.count, complete=complete))

    def _check_lease(self) -> None:
        if self._lease:
            self._patiently(self._lease.check)

    def _patiently(self, do: Callable[[], Answer]) -> Answer:
        return patiently(do, self._meanwhile)

    def _meanwhile(self) -> None:
        self._tick(self._counts)

    def _accepted(self, item: Item) -> bool:
        try:
            check_source_key(item.key)
            if not item.etag:
                raise ObjectMissingError("the manifest names it, and the source has no such photo: check the key")  # noqa: TRY301 - recorded below like the other
        except (KeyRefusedError, ObjectMissingError) as error:
            self._fail(item, error.reason, str(error))
            return False
        return True


def shown(key: str) -> str:
    """Return a key as it can be written down, whatever is in it."""
    return key.encode("utf-8", "backslashreplace").decode()
