"""Copies objects from one storage to another: photos into a bucket, a catalogue out of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from shared.errors import KeyRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.storage import Stat, Storage

COPIERS = 16
"""Objects on their way at once."""
PORTION = 64
"""Objects listed ahead of them."""


@dataclass(slots=True)
class Copied:
    """How many objects a copy met."""

    copied: int = 0
    there: int = 0
    """Already: of the same size, and not older."""
    refused: int = 0
    """Of names that one of the ends cannot have."""


def copy_objects(source: Storage, destination: Storage, refuse: Callable[[str], None] = lambda _: None) -> Copied:
    """Copy every object with its metadata; one that broke off goes on. `refuse` is told of each that cannot be. Raises `StorageError`."""

    def copy(stat: Stat) -> bool | None:
        try:
            return move(stat)
        except KeyRefusedError as error:
            refuse(str(error))
            return None

    def move(stat: Stat) -> bool:
        there = destination.head(stat.key)
        if there is not None and there.size == stat.size and there.modified >= stat.modified:
            return False
        blob = source.get(stat.key)
        destination.put(stat.key, blob.data, content_type=blob.stat.content_type, metadata=blob.stat.metadata)
        return True

    counted = Copied()
    waiting = source.list()
    with ThreadPoolExecutor(COPIERS) as pool:
        while portion := list(islice(waiting, PORTION)):
            done = list(pool.map(copy, portion))
            counted.copied += done.count(True)
            counted.there += done.count(False)
            counted.refused += done.count(None)
    return counted
