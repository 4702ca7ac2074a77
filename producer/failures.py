"""Why items failed: the broker holds it until all of their page has ended, the storage from then on, so that a broker never fills with it.

Which items have failed the broker's bitmap says; what is kept in the storage of others is old, and counts for nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby, islice
from typing import TYPE_CHECKING

from shared.bitmap import places
from shared.errors import JobDamagedError, ObjectMissingError, StorageRefusedError
from shared.jobs import PAGE, parse_lines, read_page
from shared.keys import job_prefix
from shared.progress import Failure
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shared.progress import Progress
    from shared.storage import Storage

AHEAD = 32
"""Pages read at once when all are: of a thousand failures each at most."""


class Failures:
    """The failures of one job by index. Raises `BrokerError`, `StorageError` and `JobDamagedError` whenever it is read."""

    def __init__(self, destination: Storage, progress: Progress) -> None:
        self._destination = destination
        self._progress = progress

    def __iter__(self) -> Iterator[Failure]:
        pages = (list(page) for _, page in groupby(self._progress.failed(), lambda index: index // PAGE))
        while some := list(islice(pages, AHEAD)):
            for found in in_parallel(self._destination, self._of_failed, some):
                yield from found.values()

    def of(self, indices: Sequence[int]) -> dict[int, Failure]:
        """Return the failures among items of one page, which begins at a multiple of a thousand."""
        first = indices[0] // PAGE * PAGE
        failed = set(places(self._progress.failed_of(first, PAGE), first, value=1))
        return self._of_failed([index for index in indices if index in failed])

    def keep(self, first: int) -> None:
        """Move what the broker holds of the page of the index `first` to the storage; where that takes nothing, it stays."""
        found = self.of(range(first, first + PAGE))
        held = self._progress.failures_of(list(found)) if found else {}
        if not held:
            return
        lines = (json.dumps(asdict(failure), ensure_ascii=False) for failure in found.values())
        data = "\n".join(lines).encode(errors="backslashreplace")
        with suppress(StorageRefusedError):
            self._destination.put(self._key(first), data, content_type="application/jsonl")
            self._progress.release([failure for failure in found.values() if held.get(failure.index) == failure])

    def _of_failed(self, indices: Sequence[int]) -> dict[int, Failure]:
        """Return the failures of items of one page that have failed, in that order."""
        if not indices:
            return {}
        held = self._progress.failures_of(indices)
        if len(held) == len(indices):
            return held
        first = indices[0] // PAGE * PAGE
        known = self._kept(first) | held
        if not known.keys() >= set(indices):
            known = self._untold(first, indices) | known
        return {index: known[index] for index in indices}

    def _kept(self, first: int) -> dict[int, Failure]:
        key = self._key(first)
        try:
            rows = parse_lines(self._destination.get(key).data)
            return {failure.index: failure for failure in (Failure(**row) for row in rows)}
        except ObjectMissingError:
            return {}
        except (ValueError, TypeError):
            msg = f"{self._destination.url}/{key} is damaged: restore it or delete it"
            raise JobDamagedError(msg) from None

    def _untold(self, first: int, indices: Sequence[int]) -> dict[int, Failure]:
        """Say that somebody has deleted how items failed; they can be run again all the same."""
        page = read_page(self._destination, self._progress.job, first)
        detail = "how it failed was deleted from the storage"
        return {
            index: Failure(index, page[index - first].key, "", ObjectMissingError.reason, detail) for index in indices
        }

    def _key(self, first: int) -> str:
        return f"{job_prefix(self._progress.job)}failed/{first:010d}.jsonl"
