"""Manifests: a table of the photos to take, one row each, with what is known of them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from producer.seen import Seen
from producer.tables import SHOWN, read_lines, read_table
from shared.errors import KeyRefusedError, UsageError
from shared.fields import ItemFields
from shared.keys import check_source_key
from shared.messages import Photo
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from producer.tables import Row
    from shared.storage import Storage

_JSON_FIELDS = {"points", "box"}
# In a CSV cell these are written as JSON.
_PORTION = 256
# Rows looked up ahead of the one that is asked for.
_CHECKED = 5000
# Rows checked at once.
_KNOWN = {*ItemFields.model_fields, "key", "sku"}


class Manifest:
    """A table with at least the column `key`; columns that Vitrina does not know are left alone."""

    def __init__(self, source: Path | TextIO) -> None:
        """Read from a file, or from standard input, which can be read only once and is not checked before."""
        self._source = source
        self.ignored: tuple[str, ...] = ()
        """Columns that were left alone, once `check` has run."""
        self.doubled: tuple[str, ...] = ()
        """What a person should know of keys that were named more than once, once `check` has run."""

    @property
    def path(self) -> Path:
        """The file. Raises `UsageError` for standard input."""
        if not isinstance(self._source, Path):
            raise UsageError("standard input can be read only once")
        return self._source

    def check(self) -> int:
        """Read the whole file once and return the number of rows. Raises `UsageError` that names the wrong rows; nothing is kept in memory."""
        wrong: list[str] = []
        bad = rows = 0
        ignored: dict[str, None] = {}
        twice = Twice()
        with Seen() as seen:
            for portion in _portions(self._rows(), _CHECKED):
                rows += len(portion)
                good = []
                for line, row in portion:
                    if len(ignored) <= SHOWN:
                        ignored.update(dict.fromkeys(islice(set(row) - _KNOWN, SHOWN + 1)))
                    try:
                        good.append((line, *_entry(row)))
                    except UsageError as error:
                        bad += 1
                        if len(wrong) < SHOWN:
                            wrong.append(f"line {line}: {error}")
                twice.note(good, seen)
        if wrong:
            more = f" (and {bad - len(wrong)} more)" if bad > len(wrong) else ""
            raise UsageError(f"{self.path}: {'; '.join(wrong)}{more}. Nothing was submitted: correct the manifest")
        if not rows:
            raise UsageError(f"{self.path} has no rows: nothing to submit")
        self.ignored = tuple(sorted(ignored))
        self.doubled = twice.lines(self.path)
        return rows

    def photos(
        self, source: Storage, named: Callable[[str], bool] = lambda _: True, *, listed: int = 0
    ) -> Iterator[Photo]:
        """Yield the rows' photos whose keys are `named`, in order, each key once, without the first `listed`; one that is not in the source has an empty ETag.

        Raises `UsageError`.
        """
        with Seen() as seen:
            for portion in _portions(self._rows(), _PORTION):
                entries = [_entry_at(line, row) for line, row in portion]
                verdicts = seen.add([(key, "") for key, _ in entries])
                fresh = [
                    entry
                    for entry, verdict in zip(entries, verdicts, strict=True)
                    if verdict == "new" and named(entry[0])
                ]
                passed = min(listed, len(fresh))
                listed -= passed
                yield from in_parallel(source, lambda entry: _look(source, *entry), fresh[passed:])

    def _rows(self) -> Iterator[Row]:
        return read_table(self._source) if isinstance(self._source, Path) else read_lines(self._source)


class Twice:
    """Counts keys that are named more than once, and finds those of which the rows say different things."""

    def __init__(self) -> None:
        self._same = self._otherwise = 0
        self._shown: list[str] = []

    def note(self, entries: Sequence[tuple[int, str, dict[str, Any]]], seen: Seen) -> None:
        """Take in checked rows: line, key, fields."""
        said = [(key, json.dumps(fields, sort_keys=True)) for _, key, fields in entries]
        for (line, key, _), verdict in zip(entries, seen.add(said), strict=True):
            self._same += verdict == "same"
            self._otherwise += verdict == "otherwise"
            if verdict == "otherwise" and len(self._shown) < SHOWN:
                self._shown.append(f"line {line} ({key})")

    def lines(self, path: Path) -> tuple[str, ...]:
        """Say what was found."""
        told = []
        if self._same:
            told.append(f"{path}: {self._same} rows name a photo again; each is taken once")
        if self._otherwise:
            shown = ", ".join(self._shown)
            told.append(
                f"{path}: {self._otherwise} rows say something else of a photo than the row before, which counts: {shown}"
            )
        return tuple(told)


def _portions(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while portion := list(islice(rows, size)):
        yield portion


def _entry_at(line: int, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        return _entry(row)
    except UsageError as error:
        raise UsageError(f"line {line}: {error}; the rows before it are submitted") from None


def _entry(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Check one row. Raises `UsageError`."""
    if "" in row and "key" not in row:
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


def _look(source: Storage, key: str, fields: dict[str, Any]) -> Photo:
    try:
        stat = source.head(key)
    except KeyRefusedError:
        stat = None  # a name that the source never lists, such as a hidden file's
    return Photo(key, stat.etag if stat else "", fields)
