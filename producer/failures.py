"""Why items failed: the broker holds it and, where that is much, the storage, so that a job that fails by the million fills no broker.

Which items have failed the broker's bitmap says, of the others nothing counts. A failure that the broker does not hold is the newest that the
storage keeps of its item.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING

from shared.errors import JobDamagedError, ObjectMissingError, StorageRefusedError
from shared.jobs import PAGE, parse_lines, read_page
from shared.keys import job_prefix
from shared.progress import Failure
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shared.progress import Progress
    from shared.storage import Storage

HELD = 20_000
"""Failures of a job that the broker may hold until they are moved: 4 MB, as much as a full window."""
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
            for found in in_parallel(self._destination, self.of, some):
                yield from found.values()

    def of(self, indices: Sequence[int]) -> dict[int, Failure]:
        """Return the failures among items of one page, in that order."""
        told = self._progress.failures_of(indices)
        if None in told.values():
            kept = self._kept(indices[0])
            told = {index: failure or kept.get(index) for index, failure in told.items()}
        return {index: failure or self._deleted(index) for index, failure in told.items()}

    def relieve(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Move what the broker holds to the storage, if it is much; where that takes nothing, it stays.

        `meanwhile` is called now and then; what it raises ends it.
        """
        if self._progress.holds() <= HELD:
            return
        # The time comes first: what somebody else moves meanwhile, and fails anew, is told by a later file.
        moment, held = self._progress.moment(), self._progress.held()
        for number, some in enumerate(iter(lambda: list(islice(held, HELD)), [])):
            some.sort(key=lambda failure: failure.index)
            pages = [list(page) for _, page in groupby(some, lambda failure: failure.index // PAGE)]
            try:
                for moved in in_parallel(self._destination, partial(self._keep, f"{moment}-{number}"), pages):
                    self._progress.release(moved)
            except StorageRefusedError:
                return
            meanwhile()

    def _keep(self, name: str, page: list[Failure]) -> list[Failure]:
        lines = (json.dumps(asdict(failure), ensure_ascii=False) for failure in page)
        data = "\n".join(lines).encode(errors="backslashreplace")
        self._destination.put(f"{self._page(page[0].index)}{name}.jsonl", data, content_type="application/jsonl")
        return page

    def _kept(self, index: int) -> dict[int, Failure]:
        """Read what is kept of the page of an item: of each of its items the newest."""
        kept: dict[int, Failure] = {}
        for stat in self._destination.list(self._page(index)):
            with suppress(ObjectMissingError):  # purged meanwhile
                data = self._destination.get(stat.key).data
                try:
                    kept |= {failure.index: failure for failure in (Failure(**row) for row in parse_lines(data))}
                except (ValueError, TypeError):
                    msg = f"{self._destination.url}/{stat.key} is damaged: restore it or delete it"
                    raise JobDamagedError(msg) from None
        return kept

    def _deleted(self, index: int) -> Failure:
        """Say that how an item failed is not to be found; it can be run again all the same."""
        page = read_page(self._destination, self._progress.job, index)
        return Failure(
            index, page[index % PAGE].key, "", ObjectMissingError.reason, "how it failed was deleted from the storage"
        )

    def _page(self, index: int) -> str:
        return f"{job_prefix(self._progress.job)}failed/{index // PAGE * PAGE:010d}/"
