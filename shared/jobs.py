"""A job's records in the output storage: what it was asked to do, which items it has, how it ended.

jobs/<id>/job.json                 source, destination, time of creation, whether items have fields
jobs/<id>/recipe.json              the whole recipe, never changed
jobs/<id>/items/<first index>.jsonl  the items in the order they were listed, one file per page
jobs/<id>/summary.json             the outcome
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.errors import JobDamagedError, JobNotFoundError, ObjectMissingError
from shared.keys import job_prefix
from shared.messages import Item
from shared.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shared.storage import Storage

_JSON = "application/json"
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

    def save(self, storage: Storage) -> None:
        """Write the record; the recipe first, since a job exists once `job.json` does."""
        prefix = job_prefix(self.id)
        storage.put(prefix + "recipe.json", self.recipe.to_json(), content_type=_JSON)
        record = {
            "version": 1,
            "source": self.source,
            "destination": self.destination,
            "created": self.created,
            "fields": self.fields,
        }
        storage.put(prefix + "job.json", json.dumps(record, indent=2).encode(), content_type=_JSON)

    @classmethod
    def load(cls, job: str, storage: Storage) -> Job:
        """Read the record. Raises `JobNotFoundError`, `JobDamagedError`, and `RecipeError` for a recipe of another release."""
        prefix = job_prefix(job)
        try:
            record = _read_object(storage, prefix + "job.json")
            recipe = _read_object(storage, prefix + "recipe.json")
        except ObjectMissingError:
            msg = f"there is no job {job} at {storage.url}: check the id and the address"
            raise JobNotFoundError(msg) from None
        with _damage(storage, prefix + "job.json"):
            return cls(
                id=job,
                source=str(record["source"]),
                destination=str(record["destination"]),
                recipe=Recipe.from_mapping(recipe, origin=prefix + "recipe.json"),
                created=float(record["created"]),
                fields=bool(record.get("fields", False)),
            )


def save_items(storage: Storage, items: Sequence[Item]) -> None:
    """Write one page of consecutive items; must be called before any of them is enqueued, so that the record knows them."""
    key = f"{job_prefix(items[0].job)}items/{items[0].index:010d}.jsonl"
    # ASCII escapes carry names that are not Unicode as well: they are refused later, by name.
    lines = (json.dumps({"key": item.key, "etag": item.etag, **_some(item.fields)}) for item in items)
    storage.put(key, "\n".join(lines).encode() + b"\n", content_type="application/jsonl")


def read_items(storage: Storage, job: str) -> Iterator[Item]:
    """Yield a job's items in order, one page in memory at a time. Raises `JobDamagedError`."""
    for stat in storage.list(job_prefix(job) + "items/"):
        yield from _read_page(storage, job, stat.key)


def read_page(storage: Storage, job: str, index: int) -> list[Item]:
    """Read the page that holds the item of that index. Raises `ObjectMissingError`, `JobDamagedError`."""
    return list(_read_page(storage, job, f"{job_prefix(job)}items/{index // PAGE * PAGE:010d}.jsonl"))


def _some(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"fields": dict(fields)} if fields else {}


def _read_page(storage: Storage, job: str, key: str) -> Iterator[Item]:
    data = storage.get(key).data
    with _damage(storage, key):
        first = int(key.rsplit("/", 1)[-1].removesuffix(".jsonl"))
        rows = [json.loads(line) for line in data.splitlines()]
        items = [
            Item(job=job, index=first + offset, key=row["key"], etag=row["etag"], fields=row.get("fields", {}))
            for offset, row in enumerate(rows)
        ]
    yield from items


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
