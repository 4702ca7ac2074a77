"""A job's records in the output storage: what it was asked to do, which items it has, how it ended.

jobs/<id>/job.json                 source, destination, time of creation, which photos were asked for, whether items have fields
jobs/<id>/recipe.json              the whole recipe, never changed
jobs/<id>/photos/<first index>.jsonl  what was taken of a manifest, before it is looked up
jobs/<id>/items/<first index>.jsonl  the items in the order they were listed, one file per page
jobs/<id>/listed.json              how many items there are, once all are listed
jobs/<id>/results/<first index>.jsonl  what became of the items of a page
jobs/<id>/failed/<first index>/       why items of a page failed, of a job that fails so often that the broker does not hold all of it
jobs/<id>/failures.jsonl           the items that failed, and why; failures-2.jsonl and so on from 100,000 on
jobs/<id>/summary.json             the outcome
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from shared.errors import JobDamagedError, JobNotFoundError, ObjectMissingError
from shared.keys import job_prefix
from shared.messages import Item, Photo
from shared.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shared.storage import Storage

_JSON = "application/json"
PHOTOS = 5000
"""Photos per page of what was taken of a manifest. A page with fewer is the last."""
PAGE = 1000
"""Items per page of the item list: one storage write each, and the most that is listed ahead of the window. A page's first index is a multiple of it."""


def new_job_id(now: float | None = None) -> str:
    """Make an id that sorts by time and does not clash: `20261123-142501-3f9a2c`."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + "-" + secrets.token_hex(3)


@dataclass(frozen=True, slots=True)
class Job:
    """What a job was asked to do."""

    id: str
    source: str
    """Address of the photos, without credentials."""
    destination: str
    """Address of the outputs and of these records."""
    recipe: Recipe
    created: float
    """Seconds since the epoch."""
    fields: bool = False
    """Whether a manifest says more of the items than their keys."""
    selection: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Which photos of the source were asked for, as `producer.selection` writes it."""
    priority: bool = False
    """Whether its items go before those of other jobs."""

    def save(self, storage: Storage) -> None:
        """Write the record; the recipe first, since a job exists once `job.json` does."""
        prefix = job_prefix(self.id)
        recipe = self.recipe.to_json()
        storage.put(prefix + "recipe.json", recipe, content_type=_JSON)
        record = {
            "version": 1,
            "source": self.source,
            "destination": self.destination,
            "created": self.created,
            "fields": self.fields,
            "selection": dict(self.selection),
            "priority": self.priority,
            "recipe_sha256": hashlib.sha256(recipe).hexdigest(),
        }
        storage.put(prefix + "job.json", json.dumps(record, indent=2).encode(), content_type=_JSON)

    @classmethod
    def load(cls, job: str, storage: Storage) -> Job:
        """Read the record. Raises `JobNotFoundError`, `JobDamagedError`, and `RecipeError` for a recipe of another release."""
        prefix = job_prefix(job)
        try:
            record = _read_object(storage, prefix + "job.json")
            recipe = storage.get(prefix + "recipe.json").data
        except ObjectMissingError:
            msg = f"there is no job {job} at {storage.url}: check the id and the address"
            raise JobNotFoundError(msg) from None
        if record.get("recipe_sha256") not in {None, hashlib.sha256(recipe).hexdigest()}:
            msg = f"{storage.url}/{prefix}recipe.json was changed, and a job's recipe never does: restore it, and use `vitrina rerun {job} --recipe FILE` for another"
            raise JobDamagedError(msg)
        with _damage(storage, prefix + "job.json"):
            return cls(
                id=job,
                source=str(record["source"]),
                destination=str(record["destination"]),
                recipe=Recipe.from_mapping(json.loads(recipe), origin=prefix + "recipe.json"),
                created=float(record["created"]),
                fields=bool(record.get("fields", False)),
                selection=dict(record.get("selection", {})),
                priority=bool(record.get("priority", False)),
            )


def list_jobs(storage: Storage) -> Iterator[str]:
    """Yield the ids of the jobs whose records are here, the oldest first."""
    after = ""
    # One look per job: what lies between a job's first record and the next job's is passed over.
    while found := next(storage.list("jobs/", after=after), None):
        job = found.key.split("/")[1]
        # Whoever is killed while a manifest is kept leaves records of what never was a job.
        if storage.head(job_prefix(job) + "job.json") is not None:
            yield job
        after = job_prefix(job) + chr(0x10FFFF)


class ItemList:
    """A job's list of items as it is written, one page at a time; goes on where an earlier producer ended."""

    def __init__(self, storage: Storage, job: str, page: Sequence[Item] = ()) -> None:
        self._storage = storage
        self._job = job
        self._page = list(page)
        # The last page, as long as it has room.
        self.count = page[-1].index + 1 if page else 0
        """Items listed so far."""
        self.last = page[-1].key if page else ""
        """Key of the last of them."""

    @classmethod
    def open(cls, storage: Storage, job: str) -> ItemList:
        """Open the list where it ends. Raises `JobDamagedError`."""
        last = None
        for stat in storage.list(job_prefix(job) + "items/"):
            last = stat.key
        return cls(storage, job, list(_read_page(storage, job, last)) if last else ())

    @property
    def room(self) -> int:
        """Items that still go on the last page."""
        return PAGE - len(self._page) % PAGE

    def append(self, photos: Sequence[Photo]) -> list[Item]:
        """Write at most `room` photos down, before any of them is queued, so that the record knows them."""
        if len(self._page) == PAGE:
            self._page = []
        items = [
            Item(self._job, self.count + number, photo.key, photo.etag, fields=photo.fields)
            for number, photo in enumerate(photos)
        ]
        self._page += items
        save_items(self._storage, self._page)
        self.count += len(items)
        self.last = items[-1].key
        return items


def save_listed(storage: Storage, job: str, items: int) -> None:
    """Record that all of a job's items are listed."""
    storage.put(job_prefix(job) + "listed.json", json.dumps({"items": items}).encode(), content_type=_JSON)


def load_listed(storage: Storage, job: str) -> bool:
    """Tell whether all of a job's items are listed."""
    return storage.head(job_prefix(job) + "listed.json") is not None


def save_items(storage: Storage, items: Sequence[Item]) -> None:
    """Write one page of consecutive items."""
    key = f"{job_prefix(items[0].job)}items/{items[0].index:010d}.jsonl"
    # ASCII escapes carry names that are not Unicode as well: they are refused later, by name.
    lines = (json.dumps({"key": item.key, "etag": item.etag, **_some(item.fields)}) for item in items)
    storage.put(key, "\n".join(lines).encode() + b"\n", content_type="application/jsonl")


def read_pages(storage: Storage, job: str, *, since: int = 0) -> Iterator[list[Item]]:
    """Yield a job's items a page at a time, from the page of the index `since` on. Raises `JobDamagedError`."""
    prefix = job_prefix(job) + "items/"
    after = f"{prefix}{since // PAGE * PAGE - 1:010d}.jsonl" if since >= PAGE else ""
    for stat in storage.list(prefix, after=after):
        yield list(_read_page(storage, job, stat.key))


def read_items(storage: Storage, job: str) -> Iterator[Item]:
    """Yield a job's items in order, one page in memory at a time. Raises `JobDamagedError`."""
    for page in read_pages(storage, job):
        yield from page


def read_page(storage: Storage, job: str, index: int) -> list[Item]:
    """Read the page that holds the item of that index. Raises `ObjectMissingError`, `JobDamagedError`."""
    return list(_read_page(storage, job, f"{job_prefix(job)}items/{index // PAGE * PAGE:010d}.jsonl"))


def save_photos(storage: Storage, job: str, photos: Iterable[Photo]) -> None:
    """Write down the photos that a manifest names for a job, so that whoever goes on with it needs the manifest no more."""
    waiting = iter(photos)
    for first in itertools.count(0, PHOTOS):
        page = list(islice(waiting, PHOTOS))
        lines = "".join(f"{json.dumps({'key': photo.key, **_some(photo.fields)})}\n" for photo in page)
        storage.put(_photos(job, first), lines.encode(), content_type="application/jsonl")
        if len(page) < PHOTOS:
            return


def read_photos(storage: Storage, job: str, *, since: int = 0) -> Iterator[Photo]:
    """Yield these photos again, without ETags, from the index `since` on. Raises `JobDamagedError`."""
    for first in itertools.count(since // PHOTOS * PHOTOS, PHOTOS):
        key = _photos(job, first)
        try:
            data = storage.get(key).data
        except ObjectMissingError:
            msg = f"{storage.url}/{key} is missing: submit again with --manifest, which skips finished photos"
            raise JobDamagedError(msg) from None
        with _damage(storage, key):
            page = [Photo(row["key"], "", row.get("fields", {})) for row in parse_lines(data)]
        yield from page[max(0, since - first) :]
        if len(page) < PHOTOS:
            return


def _photos(job: str, first: int) -> str:
    return f"{job_prefix(job)}photos/{first:010d}.jsonl"


def _some(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"fields": dict(fields)} if fields else {}


def _read_page(storage: Storage, job: str, key: str) -> Iterator[Item]:
    data = storage.get(key).data
    with _damage(storage, key):
        first = int(key.rsplit("/", 1)[-1].removesuffix(".jsonl"))
        rows = parse_lines(data)
        items = [
            Item(job=job, index=first + offset, key=row["key"], etag=row["etag"], fields=row.get("fields", {}))
            for offset, row in enumerate(rows)
        ]
    yield from items


def parse_lines(data: bytes) -> list[Any]:
    """Read JSON lines, all in one go: twice as fast as line by line. Raises ValueError."""
    rows: list[Any] = json.loads(b"[" + b",".join(data.splitlines()) + b"]")
    return rows


def save_summary(storage: Storage, job: str, summary: dict[str, Any], *, if_absent: bool = False) -> None:
    """Write how the job ended; with `if_absent`, only where nobody has."""
    data = json.dumps(summary, indent=2).encode()
    storage.put(job_prefix(job) + "summary.json", data, content_type=_JSON, if_absent=if_absent)


def load_summary(storage: Storage, job: str) -> dict[str, Any] | None:
    """Read how the job ended; None while it has not. Raises `JobDamagedError`."""
    try:
        return _read_object(storage, job_prefix(job) + "summary.json")
    except ObjectMissingError:
        return None


def _read_object(storage: Storage, key: str) -> dict[str, Any]:
    data = storage.get(key).data
    with _damage(storage, key):
        found = json.loads(data)
        if not isinstance(found, dict):
            raise TypeError(f"{type(found).__name__} in place of an object")
        return found


@contextmanager
def _damage(storage: Storage, key: str) -> Iterator[None]:
    """Say which record is not as it was written: cut short, or edited by hand."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{storage.url}/{key} is damaged ({type(error).__name__}: {error}): restore it, or run the job's command again, which skips finished photos"
        raise JobDamagedError(msg) from None
