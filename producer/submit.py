"""Lists a source lazily and feeds its photos to the queues through a bounded window."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError

from producer.masks import reads_masks
from shared.errors import BrokerError, KeyRefusedError, ObjectMissingError, UsageError
from shared.jobs import PAGE, Job, new_job_id, save_items
from shared.keys import STAGES, check_source_key
from shared.messages import MAX_INDEX, Item, Photo
from shared.progress import Failure, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from celery import Celery

    from shared.progress import Counts
    from shared.recipe import Recipe
    from shared.storage import Storage

BATCH = 200
"""Chains published over one connection before the window is looked at again."""
POLL_SECONDS = 0.2


def create_job(source: Storage, destination: Storage, recipe: Recipe, *, manifest: bool = False) -> Job:
    """Check both ends and write the job's record; with `manifest`, its items have fields. Raises `UsageError`, `StorageError`."""
    if source.url.rstrip("/") == destination.url.rstrip("/"):
        raise UsageError("the outputs would land among the photos: give --out a folder or prefix of its own")
    next(iter(source.list()), None)  # an unreadable source is told before anything is written
    destination.check_writable()
    job = Job(
        new_job_id(), source.url, destination.url, recipe, created=time.time(), fields=manifest or reads_masks(recipe)
    )
    job.save(destination)
    return job


def list_photos(source: Storage, destination: Storage) -> Iterator[Photo]:
    """Yield the source's objects, except the job's own outputs when they lie inside it."""
    root, inside = source.url.rstrip("/") + "/", destination.url.rstrip("/") + "/"
    own = inside.removeprefix(root) if inside.startswith(root) else None
    return (Photo(stat.key, stat.etag) for stat in source.list() if own is None or not stat.key.startswith(own))


class Submitter:
    """Feeds one job. Holds one page of items in memory, and keeps at most `window` unfinished images in the queues."""

    def __init__(self, app: Celery, progress: Progress, job: Job, destination: Storage, *, window: int) -> None:
        self._app = app
        self._progress = progress
        self._job = job
        self._destination = destination
        self._window = window
        self._sent = 0
        self._unfinished = 0

    def feed(self, photos: Iterable[Photo], tick: Callable[[Counts], None] = lambda _: None) -> int:
        """Submit every photo and return how many there were. `tick` is called while waiting, with the job's counts.

        Raises `BrokerError`, `StorageError`; what was listed until then is in the job's record.
        """
        self._progress.begin(self._job.destination)
        listed = 0
        waiting = iter(photos)
        while page := list(itertools.islice(waiting, PAGE)):
            if listed + len(page) > MAX_INDEX:
                raise UsageError(f"a job holds at most {MAX_INDEX} photos: split the source by prefix")
            items = [
                Item(self._job.id, listed + i, photo.key, photo.etag, fields=photo.fields)
                for i, photo in enumerate(page)
            ]
            save_items(self._destination, items)
            listed += len(items)
            self._progress.listed(listed, complete=False)
            self._send(items, tick)
        self._progress.listed(listed, complete=True)
        return listed

    def _send(self, items: list[Item], tick: Callable[[Counts], None]) -> None:
        position = 0
        while position < len(items):
            room = self._window - self._unfinished
            if room <= 0:
                counts = self._progress.counts()
                self._unfinished = self._sent - counts.done - counts.failed
                tick(counts)
                # Half a window of hysteresis: few large publishes rather than many of one or two.
                if self._unfinished > self._window // 2:
                    time.sleep(POLL_SECONDS)
                    self._unfinished = self._window
                continue
            batch = items[position : position + min(room, BATCH)]
            self._publish([item for item in batch if self._accepted(item)])
            self._sent += len(batch)
            self._unfinished += len(batch)
            position += len(batch)

    def _accepted(self, item: Item) -> bool:
        try:
            check_source_key(item.key)
            if not item.etag:
                raise ObjectMissingError("the manifest names it, and the source has no such photo: check the key")  # noqa: TRY301 - recorded below like the other
        except (KeyRefusedError, ObjectMissingError) as error:
            shown = item.key.encode("utf-8", "backslashreplace").decode()
            self._progress.fail(Failure(item.index, shown, "listing", error.reason, str(error)))
            return False
        return True

    def _publish(self, items: list[Item]) -> None:
        try:
            with self._app.producer_or_acquire() as producer:
                for item in items:
                    message = item.to_wire()
                    # Celery pops the next step from the end of the list.
                    tail = [self._app.signature(stage, args=(message,), immutable=True) for stage in STAGES[:0:-1]]
                    self._app.signature(STAGES[0], args=(message,)).apply_async(chain=tail, producer=producer)
        except OperationalError as error:
            msg = f"the broker does not answer: start it, or check --broker ({error})"
            raise BrokerError(msg) from None
