"""Our results by the merchant's id, in a temporary table: memory stays flat."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

from shared.temporary import in_temporary, open_temporary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from producer.results import Result

Known = dict[str, Any]
"""What became of one photo, as `Result.to_dict` writes it."""


class Index(AbstractContextManager["Index"]):
    """Any number of photos an id, in the order of the job; an item without an id is known by its key."""

    def __init__(self, results: Iterator[Result]) -> None:
        with in_temporary():
            self._db = open_temporary()
            self._db.execute(
                "CREATE TABLE results (id TEXT, number INTEGER, said TEXT, PRIMARY KEY (id, number)) WITHOUT ROWID"
            )
            self._db.execute("CREATE TABLE taken (id TEXT PRIMARY KEY) WITHOUT ROWID")
            rows = (
                (str(result.fields.get("id") or result.key), result.index, json.dumps(result.to_dict()))
                for result in results
            )
            self._db.executemany("INSERT INTO results VALUES (?, ?, ?)", rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def take(self, name: str) -> tuple[list[Known], bool]:
        """Return what became of the photos of an item, none for one that is not ours, and whether it was asked for before."""
        found = self._db.execute("SELECT said FROM results WHERE id = ? ORDER BY number", (name,)).fetchall()
        if not found:
            return [], False
        first = self._db.execute("INSERT OR IGNORE INTO taken VALUES (?)", (name,)).rowcount == 1
        return [json.loads(said) for (said,) in found], not first

    def left(self) -> int:
        """Count the photos of items that nobody asked for."""
        query = "SELECT count(*) FROM results WHERE id NOT IN (SELECT id FROM taken)"
        return int(self._db.execute(query).fetchone()[0])
