"""Tables of all items, written row by row: JSON lines, CSV, Parquet."""

from __future__ import annotations

import csv
import io
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from producer.export.rows import NUMBERS
from producer.tables import FORMULA
from shared.errors import UsageError
from shared.printable import to_json, without_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from producer.export.rows import Columns

GROUP = 10_000
"""Rows of a Parquet row group: what is in memory at once."""


def write_table(kind: str, rows: Iterator[dict[str, Any]], columns: Columns, file: IO[bytes]) -> None:
    """Write rows as `jsonl`, `csv` or `parquet`. Raises `UsageError` where the library for it is not installed."""
    TABLES[kind](rows, columns, file)


def _jsonl(rows: Iterator[dict[str, Any]], columns: Columns, file: IO[bytes]) -> None:
    del columns
    for row in rows:
        kept = {name: value for name, value in row.items() if value is not None}
        file.write(to_json(kept).encode() + b"\n")


def _csv(rows: Iterator[dict[str, Any]], columns: Columns, file: IO[bytes]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    try:
        writer = csv.writer(text)
        writer.writerow(columns.names)
        writer.writerows([_cell(row[name]) for name in columns.names] for row in rows)
    finally:
        text.detach()  # flushes, and leaves the file open to its owner


def _cell(value: Any) -> Any:
    # A spreadsheet would run a cell that begins like a formula; with an apostrophe before it, it shows the text.
    if not isinstance(value, str):
        return value
    return without_controls(f"'{value}" if FORMULA.match(value) else value)


def _parquet(rows: Iterator[dict[str, Any]], columns: Columns, file: IO[bytes]) -> None:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("install vitrina[export] to write Parquet, or choose --format csv") from None
    schema = pa.schema([(name, pa.int64() if name in NUMBERS else pa.string()) for name in columns.names])
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, GROUP)):
            # Names that are not Unicode are escaped, as in the other formats.
            texts = [{name: _text(value) for name, value in row.items()} for row in group]
            writer.write_table(pa.Table.from_pylist(texts, schema=schema))


def _text(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


TABLES: dict[str, Callable[[Iterator[dict[str, Any]], Columns, IO[bytes]], None]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
