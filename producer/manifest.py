"""Manifests: a table of the photos to take, one row each, with what is known of them."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from producer.seen import Seen
from producer.tables import SHOWN, Table
from shared.errors import KeyRefusedError, UsageError
from shared.fields import ItemFields
from shared.keys import check_source_key
from shared.messages import Photo
from shared.storage import in_parallel
from shared.temporary import KeptLines
from shared.wording import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from producer.tables import Row
    from shared.storage import Storage

STDIN = "-"
"""In place of a manifest's path: keys, one a line, or JSON lines, from standard input."""
NAMED = 20
"""Columns named in a message."""
_JSON_FIELDS = {"points", "box"}
# In a CSV cell these are written as JSON.
_PORTION = 256
# Photos looked up ahead of the one that is asked for.
_CHECKED = 5000
# Rows checked at once.
_KNOWN = (*ItemFields.model_fields, "key", "sku")


class Manifest:
    """A table with at least the column `key`, read once: checked, and kept in a temporary file whatever becomes of what was read.

    Columns that Vitrina does not know are left alone.
    """

    def __init__(self, source: Path | TextIO) -> None:
        """Read from a file or from standard input, once `check` is called."""
        self._table = Table(source, _KNOWN)
        self._kept: KeptLines | None = None
        self.name = self._table.name
        """The file, or `standard input`."""
        self.rows = 0
        """How many there were, once `check` has run."""
        self.notes: list[str] = []
        """What a person should know, once `check` has run: columns that were left alone, keys that were named more than once."""

    @classmethod
    def open(cls, name: str) -> Manifest:
        """Open a file by its path, or standard input as `-`."""
        if name != STDIN:
            return cls(Path(name))
        if isinstance(sys.stdin, io.TextIOWrapper):  # as a file is read, whatever the terminal's encoding
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline="")
        return cls(sys.stdin)

    def check(self) -> int:
        """Read all rows, unless that was done, and return their number. Raises `UsageError` that names the wrong rows; nothing is kept in memory."""
        if self._kept is None:
            self._kept = KeptLines(self._checked())
        return self.rows

    def photos(self, named: Callable[[str], bool] = lambda _: True) -> Iterator[Photo]:
        """Yield the rows' photos whose keys are `named`, in order, each key once, without ETags. Raises `UsageError` as `check` does."""
        self.check()
        for line in self._kept or ():
            row = json.loads(line)
            if named(row["key"]):
                yield Photo(row["key"], "", row["fields"])

    def _checked(self) -> Iterator[bytes]:
        """Check the rows and yield those that name a photo for the first time, as JSON lines."""
        wrong: list[str] = []
        bad = rows = 0
        twice = Twice()
        with Seen() as seen:
            for portion in _portions(iter(self._table), _CHECKED):
                rows += len(portion)
                good = []
                for line, row in portion:
                    try:
                        good.append((line, *_entry(row)))
                    except UsageError as error:
                        bad += 1
                        if len(wrong) < SHOWN:
                            wrong.append(f"line {line}: {error}")
                fresh = twice.note(good, seen)
                yield "".join(f"{json.dumps({'key': key, 'fields': fields})}\n" for key, fields in fresh).encode()
        if wrong:
            more = f" (and {bad - len(wrong)} more)" if bad > len(wrong) else ""
            raise UsageError(f"{self.name}: {'; '.join(wrong)}{more}. Nothing was submitted: correct the manifest")
        if not rows:
            raise UsageError(f"{self.name} has no rows: nothing to submit")
        self.rows = rows
        self.notes = [*_unused(self._table), *twice.lines(self.name)]


def _unused(table: Table) -> list[str]:
    names = [f"{name[:60]}{nearest(name, table.missing)}" for name in islice(table.unused, NAMED)]
    more = " and others" if len(table.unused) > NAMED else ""
    return [f"{table.name}: columns that are not used: {', '.join(names)}{more}"] if names else []


class Twice:
    """Counts keys that are named more than once, and finds those of which the rows say different things."""

    def __init__(self) -> None:
        self._same = self._otherwise = 0
        self._shown: list[str] = []

    def note(self, entries: Sequence[tuple[int, str, dict[str, Any]]], seen: Seen) -> list[tuple[str, dict[str, Any]]]:
        """Take in checked rows: line, key, fields. Return key and fields of those whose key is new."""
        said = [(key, json.dumps(fields, sort_keys=True)) for _, key, fields in entries]
        fresh = []
        for (line, key, fields), verdict in zip(entries, seen.add(said), strict=True):
            if verdict == "new":
                fresh.append((key, fields))
            self._same += verdict == "same"
            self._otherwise += verdict == "otherwise"
            if verdict == "otherwise" and len(self._shown) < SHOWN:
                self._shown.append(f"line {line} ({key})")
        return fresh

    def lines(self, name: str) -> tuple[str, ...]:
        """Say what was found."""
        told = []
        if self._same:
            told.append(f"{name}: {self._same} rows name a photo again; each is taken once")
        if self._otherwise:
            shown = ", ".join(self._shown)
            told.append(
                f"{name}: {self._otherwise} rows name a photo again and say other things of it; the first of each counts, not {shown}"
            )
        return tuple(told)


def _portions(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while portion := list(islice(rows, size)):
        yield portion


def _entry(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Check one row. Raises `UsageError`."""
    if "" in row:
        raise UsageError(str(row[""]))
    key = row.get("key")
    if not isinstance(key, str) or not key:
        raise UsageError("the key is missing")
    if "://" in key:
        raise UsageError(f"{key[:80]!r} is an address: give keys relative to the source")
    try:
        check_source_key(key)
        known = {name: row[name] for name in ItemFields.model_fields if name in row}
        if not known.get("id") and row.get("sku"):  # the other usual name
            known["id"] = row["sku"]
        for name in _JSON_FIELDS & known.keys():
            if isinstance(known[name], str) and known[name]:
                known[name] = json.loads(known[name])
        return key, ItemFields.check(known)
    except KeyRefusedError as error:
        raise UsageError(str(error)) from None
    except (ValueError, RecursionError):
        raise UsageError("points and box are written as JSON, for example [10, 20, 300, 400]") from None


def look_up(photos: Iterable[Photo], source: Storage) -> Iterator[Photo]:
    """Yield the photos in order, those without an ETag, as a manifest names them, with the source's. One that is not there stays without."""

    def look(photo: Photo) -> Photo:
        if photo.etag:
            return photo
        try:
            stat = source.head(photo.key)
        except KeyRefusedError:
            stat = None  # a name that the source never lists, such as a hidden file's
        return replace(photo, etag=stat.etag) if stat else photo

    waiting = iter(photos)
    while portion := list(islice(waiting, _PORTION)):
        if all(photo.etag for photo in portion):
            yield from portion
        else:
            yield from in_parallel(source, look, portion)
