"""Rows of a table, one at a time: CSV, JSON lines, Parquet, or keys one a line."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any, TextIO

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Row = tuple[int, dict[str, Any]]
"""A row's number, as a person counts lines, and what it says by column; a row that is none says why under an empty name."""
KINDS = ".csv, .jsonl or .parquet"
BATCH = 10_000
"""Rows of a Parquet file in memory at once."""
MAX_LINE = 1_000_000
"""Characters of one line; the longest row that can be right has a few thousand."""
FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet may run, or would take for run. The tables that we write have an apostrophe before it, and those that we read lose it again."""
SHOWN = 5
"""Names listed in a message; the rest are counted."""


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. Raises `UsageError` for what is no such table."""
    kind = path.suffix.lower()
    if kind not in {".csv", ".jsonl", ".parquet"}:
        raise UsageError(f"{path}: a manifest is a {KINDS} file")
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
            return
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(path, file) if kind == ".csv" else _jsonl_rows(path, file)
    except OSError as error:
        raise UsageError(f"cannot read the manifest {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 throughout (byte {error.start}): save it as UTF-8") from None


def read_lines(file: TextIO) -> Iterator[Row]:
    """Yield keys, one a line, or rows where a line begins with a brace. Raises `UsageError`."""
    try:
        for number, line in enumerate(_lines("standard input", file), 1):
            text = line.rstrip("\r\n")
            if text.startswith("{"):
                yield number, _json_row("standard input", number, text)
            elif text:
                yield number, {"key": text}
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 throughout (byte {error.start})") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError(f"{path}: install vitrina[export] to read Parquet, or give a .csv or .jsonl file") from None
    try:
        with parquet.ParquetFile(path) as file:
            if "key" not in file.schema_arrow.names:
                raise UsageError(f"{path}: there must be a column `key`")
            number = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except ArrowInvalid as error:
        raise UsageError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]})") from None


def _csv_rows(path: Path, file: TextIO) -> Iterator[Row]:
    reader = csv.reader(_lines(str(path), file), strict=True)
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
            yield reader.line_num, dict(zip(header, map(_plain, cells), strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _lines(origin: str, file: TextIO) -> Iterator[str]:
    """Yield lines, none of them longer than memory. Raises `UsageError`."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UsageError(f"{origin}, line {number}: more than {MAX_LINE:,} characters: is it such a table?")
        yield line


def _jsonl_rows(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(str(path), file), 1):
        if line.strip():
            yield number, _json_row(str(path), number, line)


def _json_row(origin: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{origin}, line {number}: not valid JSON") from None
    return row if isinstance(row, dict) else {"": "not an object with fields"}
