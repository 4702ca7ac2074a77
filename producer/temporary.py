"""Tables too large for memory, in a temporary file (`TMPDIR`) without a name, which goes with the process."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    except sqlite3.OperationalError as error:
        raise UsageError(f"no room for temporary tables ({error}): set TMPDIR to a folder of a larger disk") from None
