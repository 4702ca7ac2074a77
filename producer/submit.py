"""Lists a source lazily and feeds its photos to the queues through a bounded window."""

from __future__ import annotations

import itertools
import re
import time
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError

from producer.masks import reads_masks
from shared.errors import BrokerError, KeyRefusedError, ObjectMissingError, UsageError
from shared.jobs import PAGE, Job, new_job_id, save_items
from shared.keys import STAGES, check_source_key
from shared.messages import MAX_INDEX, Item, Photo
from shared.progress import FULL, Failure, Progress
from shared.recipe import SuppliedSegmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from celery import Celery

    from shared.progress import Counts
    from shared.recipe import Recipe
    from shared.storage import Storage

BATCH = 200
"""Chains published over one connection before the window is looked at again."""
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 30.0
"""How long a broker may be full or away before the producer gives up: its restart takes less, and a person is waiting."""
AGAIN_SECONDS = 1.0
"""Between two tries to publish."""
_RETRIES = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
# Celery's own wait, with which workers outlive any outage, would never end and show nothing; one retry renews a stale connection.


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


def list_photos(source: Storage, destination: Storage, recipe: Recipe | None = None) -> Iterator[Photo]:
    """Yield the source's objects, except the job's own outputs when they lie inside it.

    Where the recipe takes masks from beside the photos, whatever is named like one is left out as well.
    """
    root, inside = source.url.rstrip("/") + "/", destination.url.rstrip("/") + "/"
    own = inside.removeprefix(root) if inside.startswith(root) else None
    masks = _mask_names(recipe) if recipe else None
    for stat in source.list():
        if own is not None and stat.key.startswith(own):
            continue
        if masks is None or not masks.fullmatch(stat.key):
            yield Photo(stat.key, stat.etag)


def _mask_names(recipe: Recipe) -> re.Pattern[str] | None:
    """Turn the recipe's `mask_key` around: a pattern that matches the names it gives to masks; None when it takes none."""
    segmentation = recipe.segmentation
    if not isinstance(segmentation, SuppliedSegmentation) or segmentation.mask != "supplied":
        return None
    pattern = re.escape(segmentation.mask_key)
    # A key ends like a photo's: with `{key}.png`, the photo `mug.png` is no mask of a photo `mug`.
    for field, text in (("key", r".*[^/]\.(?i:jpe?g|png|webp)"), ("stem", r".*[^/]")):
        name = re.escape(f"{{{field}}}")
        pattern = pattern.replace(name, f"(?P<{field}>{text})", 1).replace(name, f"(?P={field})")
    return re.compile(pattern, re.DOTALL)


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
        self._counts: Counts

    def feed(self, photos: Iterable[Photo], tick: Callable[[Counts], None] = lambda _: None) -> int:
        """Submit every photo and return how many there were. `tick` is called while waiting, with the last known counts.

        Raises `BrokerError`, `StorageError`; what was listed until then is in the job's record.
        """
        self._progress.begin(self._job.destination)
        self._counts = self._progress.counts()
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
                self._counts = self._progress.counts()
                self._unfinished = self._sent - self._counts.done - self._counts.failed
                tick(self._counts)
                # Half a window of hysteresis: few large publishes rather than many of one or two.
                if self._unfinished > self._window // 2:
                    time.sleep(POLL_SECONDS)
                    self._unfinished = self._window
                continue
            batch = items[position : position + min(room, BATCH)]
            self._publish([item for item in batch if self._accepted(item)], tick)
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

    def _publish(self, items: list[Item], tick: Callable[[Counts], None]) -> None:
        waiting = iter(items)
        item = next(waiting, None)
        give_up = time.monotonic() + PATIENCE_SECONDS
        while item:
            try:
                with self._app.producer_or_acquire() as producer:
                    while item:
                        self._enqueue(item, producer)
                        item = next(waiting, None)
            except OperationalError as error:
                if time.monotonic() > give_up:
                    raise _refused(error) from None
                tick(self._counts)
                time.sleep(AGAIN_SECONDS)

    def _enqueue(self, item: Item, producer: Any) -> None:
        message = item.to_wire()
        # Celery pops the next step from the end of the list.
        tail = [self._app.signature(stage, args=(message,), immutable=True) for stage in STAGES[:0:-1]]
        first = self._app.signature(STAGES[0], args=(message,))
        first.apply_async(chain=tail, producer=producer, retry_policy=_RETRIES)


def _refused(error: OperationalError) -> BrokerError:
    again = "then run the same command again: finished photos are skipped"
    if isinstance(error.__cause__, OutOfMemoryError):
        return BrokerError(f"{FULL}; {again}")
    return BrokerError(f"the broker does not answer: start it, or check --broker; {again} ({error})")
