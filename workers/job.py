"""A job as a worker has it open: its recipe, its storages, and what its manifest says of the items at hand."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.errors import StorageError, StorageReadOnlyError, StorageRefusedError
from shared.jobs import PAGE, Job, read_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.messages import Item
    from shared.plan import Plan
    from shared.progress import Progress
    from shared.storage import Storage

PROBE = "is-anyone-there"
"""A key that nobody has, to ask a storage for."""


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job with everything a worker needs to run its items."""

    job: Job
    plan: Plan
    source: Storage
    destination: Storage
    progress: Progress
    pages: Pages | None
    """None when no manifest says more of the items."""

    def answers(self) -> bool:
        """Whether its storages answer at all, though it be that they have no such thing."""
        try:
            for storage in (self.destination, self.source):
                storage.head(PROBE)
        except StorageRefusedError:
            return True
        except StorageError:
            return False
        return True

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """Write an output. Raises `StorageReadOnlyError` where none could be written, `StorageError` for what is the matter with this one."""
        try:
            self.destination.put(key, data, content_type=content_type, metadata=metadata)
        except StorageRefusedError as error:
            try:
                self.destination.check_writable()
            except StorageError:
                raise StorageReadOnlyError(str(error)) from None
            raise


class Pages:
    """The pages of a job's item list that were read last: items come nearly in order, so that one read serves a page."""

    KEPT = 4

    def __init__(self, job: Job, storage: Storage) -> None:
        self._job = job
        self._storage = storage
        self._pages: dict[int, list[Item]] = {}
        self._lock = threading.Lock()

    def fields(self, index: int, *, again: bool = False) -> Mapping[str, Any]:
        """Return what the manifest says of an item; `again` asks for what it says by now. Raises `StorageError`."""
        with self._lock:
            number, row = divmod(index, PAGE)
            # The last page grows while a job is fed.
            if again or row >= len(self._pages.get(number, ())):
                self._pages.pop(number, None)
                while len(self._pages) >= self.KEPT:
                    self._pages.pop(next(iter(self._pages)))
                self._pages[number] = read_page(self._storage, self._job.id, index)
            return self._pages[number][row].fields
