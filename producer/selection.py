"""Which photos of a source a job takes."""

from __future__ import annotations

import hashlib
import heapq
import re
import time
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from producer.listing import list_photos
from producer.manifest import Manifest
from shared.errors import UsageError
from shared.jobs import read_pages
from shared.messages import Photo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.recipe import Recipe
    from shared.storage import Stat, Storage

_SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^\]]+\]")


@dataclass(frozen=True)
class Selection:
    """What was asked for; kept in the job's record, so that another producer can go on."""

    include: tuple[str, ...] = ()
    """Globs over the whole key; without any, everything is included. `*` stays within a folder, `**` does not."""
    exclude: tuple[str, ...] = ()
    """Globs of what is left out, though included."""
    modified_since: float = 0.0
    """Seconds since the epoch; of a listing alone."""
    limit: int | None = None
    """At most so many, the first ones."""
    sample: int | None = None
    """So many, spread evenly and the same each time: those whose keys have the lowest hashes."""
    manifest: str | None = None
    """Path of a manifest, or `-` for standard input; None for all photos of the source. A job keeps what it took of it among its records."""
    job: str | None = None
    """Another job whose items are taken, as they were listed."""
    watch: bool = False
    """Whether the photos are taken as they come, see `producer.watch`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, without what was not asked for."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Selection:
        """Read the JSON-able form. Raises `UsageError` for what another release wrote and this one does not know."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"the job asks for {', '.join(unknown)}: feed it with the release that made it")
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**given)

    def check(self) -> list[str]:
        """Look for what cannot work, before anything is submitted, and return what a person should know. Raises `UsageError`."""
        for pattern in (*self.include, *self.exclude):
            if pattern.startswith("/") or "://" in pattern:
                raise UsageError(f"{pattern!r} matches no key: keys are relative to the source, such as 'shoes/**'")
        if self.limit and self.sample:
            raise UsageError("--limit takes the first photos and --sample some of all: choose one")
        if not self.manifest:
            return []
        if self.modified_since:
            raise UsageError("--modified-since looks at a listing: a manifest names its photos itself")
        self.table.check()
        return self.table.notes

    @cached_property
    def table(self) -> Manifest:
        """The manifest; standard input is there only once. Raises `UsageError` without one."""
        if not self.manifest:
            raise UsageError("no manifest was given")
        return Manifest.open(self.manifest)

    def photos(
        self, source: Storage, destination: Storage, recipe: Recipe, *, listed: int = 0, last: str = ""
    ) -> Iterator[Photo]:
        """Yield the photos in a repeatable order; those of a manifest come without ETag, see `look_up`.

        Goes on without the first `listed`, the last of which was `last`; what a manifest named, `shared.jobs.read_photos` reads again.
        """
        found = self._all(source, destination, recipe, listed=listed, last=last)
        if self.sample:
            # Of what comes after the last that was taken, the lowest hashes are the rest of the sample.
            return iter(_sample(found, max(0, self.sample - listed)))
        return islice(found, None if self.limit is None else max(0, self.limit - listed))

    def _all(
        self, source: Storage, destination: Storage, recipe: Recipe, *, listed: int = 0, last: str = ""
    ) -> Iterator[Photo]:
        named = self.named()
        if self.job:
            items = (item for page in read_pages(destination, self.job, since=listed) for item in page)
            return (Photo(item.key, item.etag, item.fields) for item in items if item.index >= listed)
        if self.manifest:
            return self.table.photos(named)

        def wanted(stat: Stat) -> bool:
            return stat.modified >= self.modified_since and named(stat.key)

        return list_photos(source, destination, recipe, after=last, wanted=wanted)

    def named(self) -> Callable[[str], bool]:
        """Return what tells the keys that `include` and `exclude` ask for."""
        include = [_pattern(glob) for glob in self.include]
        exclude = [_pattern(glob) for glob in self.exclude]

        def named(key: str) -> bool:
            if include and not any(pattern.fullmatch(key) for pattern in include):
                return False
            return not any(pattern.fullmatch(key) for pattern in exclude)

        return named


def parse_since(text: str, now: float | None = None) -> float:
    """Read a date, a moment (of UTC unless it says otherwise), or a time back from now such as `24h` or `7d`, as seconds since the epoch. Raises `UsageError`."""
    if span := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text):
        return (time.time() if now is None else now) - float(span[1]) * _SPANS[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time: give a date such as 2026-11-01, or 30m, 24h, 7d, 2w") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _pattern(glob: str) -> re.Pattern[str]:
    """Translate a glob. One without a slash matches the name in any folder, as a person expects of `*.jpg`."""
    if "/" not in glob and not glob.startswith("**"):
        glob = f"**/{glob}"
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    end = 0
    for found in _GLOB.finditer(glob):
        parts += [re.escape(glob[end : found.start()]), words.get(found[0], found[0].replace("[!", "[^"))]
        end = found.end()
    try:
        return re.compile("".join([*parts, re.escape(glob[end:])]), re.DOTALL)
    except re.error as error:
        raise UsageError(f"{glob!r} is no pattern ({error}): write a key with *, ** and ? in it") from None


def _sample(photos: Iterator[Photo], size: int) -> list[Photo]:
    """Choose the photos whose keys have the lowest hashes, in the order they came."""
    if not size:
        return []
    ranked = (
        (hashlib.blake2b(photo.key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), number, photo)
        for number, photo in enumerate(photos)
    )
    return [
        photo for _, _, photo in sorted(heapq.nsmallest(size, ranked, key=lambda row: row[:2]), key=lambda row: row[1])
    ]
