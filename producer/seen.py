"""A set of keys on disk, for lists of a hundred million that may name one twice."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from shared.temporary import in_temporary, open_temporary

if TYPE_CHECKING:
    from collections.abc import Sequence

_FEW = 500
"""Keys asked for in one query."""


class Seen(AbstractContextManager["Seen"]):
    """Keeps 16 bytes of hash a key, some 50 on disk: two keys of one hash are not met in a lifetime."""

    def __init__(self) -> None:
        with in_temporary():
            self._db = open_temporary()
            self._db.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, said BLOB) WITHOUT ROWID")

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def add(self, rows: Sequence[tuple[str, str]]) -> list[str]:
        """Add keys, each with what is said of it, and tell of each whether it is `new`, the `same` as before, or now said `otherwise`. Raises `UsageError` when there is no room."""
        with in_temporary():
            return self._add([(_hash(key), _hash(said)) for key, said in rows])

    def _add(self, hashed: list[tuple[bytes, bytes]]) -> list[str]:
        known: dict[bytes, bytes] = {}
        for start in range(0, len(hashed), _FEW):
            some = [key for key, _ in hashed[start : start + _FEW]]
            marks = ",".join("?" * len(some))
            known.update(self._db.execute(f"SELECT key, said FROM seen WHERE key IN ({marks})", some))  # noqa: S608 - only question marks
        verdicts = []
        fresh = []
        for key, said in hashed:
            if key not in known:
                known[key] = said
                fresh.append((key, said))
                verdicts.append("new")
            else:
                verdicts.append("same" if known[key] == said else "otherwise")
        self._db.executemany("INSERT INTO seen VALUES (?, ?)", fresh)
        return verdicts


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
