"""Tables too large for memory, in a temporary file (`TMPDIR`) without a name, which goes with the process."""

from __future__ import annotations

import errno
import gzip
import sqlite3
import tempfile
import weakref
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IN_MEMORY = 50_000
"""Names sorted in memory: some 5 MB."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def open_temporary() -> sqlite3.Connection:
    """Open an empty database for any thread; its file is unlinked as soon as it is made, so that a killed process leaves none."""
    database = sqlite3.connect("", check_same_thread=False)
    # Nothing of it is worth keeping after a crash.
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    return database


@contextmanager
def in_temporary() -> Iterator[None]:
    """Say what to do when there is no room. Raises `UsageError`."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_ROOM:
            raise
        raise UsageError(f"no room for temporary tables ({error}): set TMPDIR to a folder of a larger disk") from None


def sorted_names(names: Iterable[bytes]) -> Iterable[bytes]:
    """Return the names in ascending order, in memory while they are at most `IN_MEMORY`. Raises `UsageError` when there is no room."""
    waiting = iter(names)
    few = sorted(islice(waiting, IN_MEMORY))
    if len(few) < IN_MEMORY:
        return few
    with in_temporary():
        database = open_temporary()
        database.execute("CREATE TABLE names (name BLOB)")
        database.executemany("INSERT INTO names VALUES (?)", ((name,) for name in chain(few, waiting)))
    return _in_order(database)


def _in_order(database: sqlite3.Connection) -> Iterator[bytes]:
    with closing(database), in_temporary():
        for (name,) in database.execute("SELECT name FROM names ORDER BY name"):
            yield name


class KeptLines:
    """Lines in a compressed temporary file, written once and read any number of times, by one reader at a time."""

    def __init__(self, portions: Iterable[bytes]) -> None:
        """Write down whole lines. Raises `UsageError` when there is no room, and what `portions` raises."""
        with in_temporary():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
            weakref.finalize(self, self._file.close)
            with gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=1) as packed:
                for portion in portions:
                    packed.write(portion)
            self._file.flush()

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        with gzip.GzipFile(fileobj=self._file) as packed:
            yield from packed
