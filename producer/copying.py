"""Copies objects from one storage to another: photos into a bucket, a catalogue out of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.storage import Stat, Storage

COPIERS = 16
"""Objects on their way at once."""
PORTION = 64
"""Objects listed ahead of them."""


def copy_objects(source: Storage, destination: Storage, prefix: str = "") -> tuple[int, int]:
    """Copy every object below `prefix` with its metadata; return how many were copied, and how many were there already.

    There already is one of the same size that is not older, so that a copy that broke off goes on. Raises `StorageError`.
    """

    def copy(stat: Stat) -> bool:
        there = destination.head(stat.key)
        if there is not None and there.size == stat.size and there.modified >= stat.modified:
            return False
        blob = source.get(stat.key)
        destination.put(stat.key, blob.data, content_type=blob.stat.content_type, metadata=blob.stat.metadata)
        return True

    copied = skipped = 0
    waiting = source.list(prefix)
    with ThreadPoolExecutor(COPIERS) as pool:
        while portion := list(islice(waiting, PORTION)):
            done = list(pool.map(copy, portion))
            copied += sum(done)
            skipped += len(done) - sum(done)
    return copied, skipped
