"""Manifests: a table of the photos to take, one row each, with what is known of them."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

from shared.errors import KeyRefusedError, UsageError
from shared.fields import ItemFields
from shared.keys import check_source_key
from shared.messages import Photo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shared.storage import Storage

_JSON_FIELDS = {"points", "box"}
# In a CSV cell these are written as JSON.
SHOWN = 5
"""Wrong rows named in the message; the rest are counted."""
LOOKERS = 16
"""Photos looked up at once: each is a short request that mostly waits."""
_PORTION = 256
# Rows looked up ahead of the one that is asked for.


class Manifest:
    """A CSV or JSONL file with at least the column `key`; columns that Vitrina does not know are left alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored: tuple[str, ...] = ()
        """Columns that were left alone, once `check` has run."""

    def check(self) -> int:
        """Read the whole file once and return the number of rows. Raises `UsageError` that names the wrong rows; nothing is kept in memory."""
        wrong: list[str] = []
        bad = rows = 0
        ignored: dict[str, None] = {}
        for line, row in self._rows():
            rows += 1
            try:
                if len(ignored) <= SHOWN:
                    ignored.update(dict.fromkeys(set(row) - set(ItemFields.model_fields) - {"key"}))
                _entry(row)
            except UsageError as error:
                bad += 1
                if len(wrong) < SHOWN:
                    wrong.append(f"line {line}: {error}")
        if wrong:
            more = f" (and {bad - len(wrong)} more)" if bad > len(wrong) else ""
            raise UsageError(f"{self.path}: {'; '.join(wrong)}{more}. Nothing was submitted: correct the manifest")
        if not rows:
            raise UsageError(f"{self.path} has no rows: nothing to submit")
        self.ignored = tuple(sorted(ignored))
        return rows

    def photos(self, source: Storage) -> Iterator[Photo]:
        """Yield the rows' photos in order; one that is not in the source has an empty ETag. A key named twice is an item twice, made once."""
        entries = (_entry(row) for _, row in self._rows())
        with ThreadPoolExecutor(LOOKERS) as pool:
            while portion := list(islice(entries, _PORTION)):
                yield from pool.map(lambda entry: _look(source, *entry), portion)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        kind = self.path.suffix.lower()
        if kind not in {".csv", ".jsonl"}:
            raise UsageError(f"{self.path}: a manifest is a .csv or a .jsonl file")
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                yield from _csv_rows(self.path, file) if kind == ".csv" else _jsonl_rows(self.path, file)
        except OSError as error:
            raise UsageError(f"cannot read the manifest {self.path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path} is not UTF-8 throughout (byte {error.start}): save it as UTF-8") from None


def _csv_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, None)
        if header and len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), "")):
            name = {"\t": "a tab", ";": "a semicolon", "|": "a bar"}[separator]
            raise UsageError(f"{path}: its columns are separated by {name}: save it with commas between them")
        if header is None or "key" not in header:
            raise UsageError(f"{path}: the first line must name the columns, one of them `key`")
        if doubled := sorted({name for name in header if header.count(name) > 1})[:SHOWN]:
            raise UsageError(f"{path}: columns named twice: {', '.join(doubled)}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                found = f"{len(cells)} cells where the first line names {len(header)} columns"
                yield reader.line_num, {"": f"{found}: put quotes around a cell that holds commas"}
                continue
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _jsonl_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{path}, line {number}: not valid JSON") from None
        yield number, row if isinstance(row, dict) else {"": "not an object with fields"}


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
        for name in _JSON_FIELDS & known.keys():
            if isinstance(known[name], str) and known[name]:
                known[name] = json.loads(known[name])
        return key, ItemFields.check(known)
    except KeyRefusedError as error:
        raise UsageError(str(error)) from None
    except ValueError:
        raise UsageError("points and box are written as JSON, for example [10, 20, 300, 400]") from None


def _look(source: Storage, key: str, fields: dict[str, Any]) -> Photo:
    try:
        stat = source.head(key)
    except KeyRefusedError:
        stat = None  # a name that the source never lists, such as a hidden file's
    return Photo(key, stat.etag if stat else "", fields)
