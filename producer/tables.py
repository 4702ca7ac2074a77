"""Rows of a table, one at a time: CSV, JSON lines, Parquet, or keys, one a line."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

Row = tuple[int, dict[str, Any]]
"""A row's number, as a person counts lines, and what it says by column; a row that is none says why under an empty name."""
KINDS = ".csv, .jsonl or .parquet"
BATCH = 10_000
"""Rows of a Parquet file in memory at once."""
MAX_LINE = 1_000_000
"""Characters of one line; the longest row that can be right has a few thousand."""
FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet may run, or would take for run. The tables that we write have an apostrophe before it, and those that we read lose it again."""
NOT_TEXT = "not UTF-8: save the table as UTF-8"
SHOWN = 5
"""Names listed in a message; the rest are counted."""


class Table:
    """One file, or standard input with keys, one a line, or JSON lines; read row by row, whatever its length and width."""

    def __init__(self, source: Path | TextIO, columns: Collection[str]) -> None:
        """Only `columns` are taken from the rows."""
        self._source = source
        self._columns = columns
        self.name = str(source) if isinstance(source, Path) else "standard input"
        """As a person knows it."""
        self.unused: dict[str, None] = {}
        """The other columns: all that a header names, or the first few that JSON lines do. Filled while rows are read."""
        self.missing = set(columns)
        """The columns that no row has had so far."""

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows. Raises `UsageError` for what is no such table."""
        if not isinstance(self._source, Path):
            yield from self._lines(self._source, keys=True)
            return
        kind = self._source.suffix.lower()
        if kind not in {".csv", ".jsonl", ".parquet"}:
            raise UsageError(f"{self.name}: a manifest is a {KINDS} file")
        try:
            if kind == ".parquet":
                yield from self._parquet(self._source)
                return
            # What is no UTF-8 is kept as it is until its row is known.
            with self._source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from self._csv(file) if kind == ".csv" else self._lines(file)
        except OSError as error:
            raise UsageError(f"cannot read the manifest {self.name}: {error.strerror or error}") from None

    def _parquet(self, path: Path) -> Iterator[Row]:
        try:
            from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415 - an extra
        except ImportError:
            raise UsageError(
                f"{self.name}: install vitrina[export] to read Parquet, or give a .csv or .jsonl file"
            ) from None
        number = rows = 0
        try:
            with parquet.ParquetFile(path) as file:
                taken = self._taken(file.schema_arrow.names)
                if "key" not in taken:
                    raise UsageError(f"{self.name}: there must be a column `key`")
                for batch in file.iter_batches(batch_size=BATCH, columns=list(taken)):
                    rows += len(batch)
                    for row in batch.to_pylist():
                        number += 1
                        yield number, {name: row[name] for name in taken if row[name] is not None}
        except UnicodeDecodeError:
            raise UsageError(f"{self.name}, rows {number + 1} to {rows}: {NOT_TEXT}") from None
        except ArrowInvalid as error:
            raise UsageError(f"{self.name}: not a Parquet file ({' '.join(str(error).split())[:200]})") from None

    def _csv(self, file: TextIO) -> Iterator[Row]:
        reader = csv.reader(self._bounded(file), strict=True)
        line = 1
        try:
            header = next(reader, None)
            taken = self._header(header)
            width = len(header or ())
            # A row may go over several lines; it is known by the first, where a quote that nobody closes was opened.
            while (line := reader.line_num + 1) and (cells := next(reader, None)) is not None:
                if not cells:
                    continue
                if len(cells) != width:
                    found = f"{len(cells)} cells where the first line names {width} columns"
                    yield line, {"": f"{found}: put quotes around a cell that holds commas"}
                    continue
                row = {name: _plain(cells[place]) for name, place in taken.items()}
                yield line, row if all(map(_is_text, row.values())) else {"": NOT_TEXT}
        except csv.Error as error:
            hint = ": is a quote opened there and not closed?" if reader.line_num > line else ""
            raise UsageError(f"{self.name}, line {line}: not valid CSV ({error}){hint}") from None

    def _header(self, header: list[str] | None) -> dict[str, int]:
        """Check a CSV's first line and return where the columns that are taken stand."""
        if header and not all(map(_is_text, header)):
            raise UsageError(f"{self.name}, line 1: {NOT_TEXT}")
        if header and len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), "")):
            name = {"\t": "a tab", ";": "a semicolon", "|": "a bar"}[separator]
            raise UsageError(f"{self.name}: its columns are separated by {name}: save it with commas between them")
        if header is None or "key" not in header:
            raise UsageError(f"{self.name}: the first line must name the columns, one of them `key`")
        if doubled := sorted(name for name, times in Counter(header).items() if times > 1)[:SHOWN]:
            raise UsageError(f"{self.name}: columns named twice: {', '.join(doubled)}")
        return self._taken(header)

    def _taken(self, names: Sequence[str]) -> dict[str, int]:
        """Return where the columns stand that are taken, and note the others."""
        self.unused = {name: None for name in names if name not in self._columns}
        self.missing.difference_update(names)
        return {name: place for place, name in enumerate(names) if name in self._columns}

    def _lines(self, file: TextIO, *, keys: bool = False) -> Iterator[Row]:
        """Yield JSON lines; with `keys`, those that begin with no brace are keys."""
        for number, line in enumerate(self._bounded(file), 1):
            text = line.rstrip("\r\n") if keys else line.strip()
            if not text:
                continue
            if not _is_text(text):
                yield number, {"": NOT_TEXT}
            elif keys and not text.startswith("{"):
                yield number, {"key": text}
            else:
                yield number, self._json(text)

    def _json(self, text: str) -> dict[str, Any]:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            return {"": "not valid JSON"}
        if not isinstance(row, dict):
            return {"": "not an object with fields"}
        if len(self.unused) <= SHOWN:
            self.unused.update(islice(((name, None) for name in row if name not in self._columns), SHOWN + 1))
        self.missing.difference_update(row)
        return {name: row[name] for name in self._columns if name in row}

    def _bounded(self, file: TextIO) -> Iterator[str]:
        """Yield lines, none of them longer than memory. Raises `UsageError`."""
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UsageError(f"{self.name}, line {number}: more than {MAX_LINE:,} characters: is it such a table?")
            yield line


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _is_text(cell: str) -> bool:
    """Tell whether what was read is UTF-8."""
    if cell.isascii():
        return True
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True
