"""Works a job's progress out again from storage, for a broker that came back empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.failures import Failures
from producer.results import in_order, read_kept
from producer.sealing import read_failures
from shared.errors import ItemError
from shared.jobs import load_listed, read_pages
from shared.keys import STAGES
from shared.plan import Plan
from shared.progress import Counts, Failure
from shared.provenance import Provenance
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from producer.results import Result
    from shared.jobs import Job
    from shared.messages import Item
    from shared.progress import Progress
    from shared.storage import Storage


@dataclass(frozen=True, slots=True)
class Found:
    """What storage tells of an item."""

    index: int
    through: int = 0
    """Stages it is through, from the first on."""
    ran: bool = False
    """Whether it is through all of them in this job, and not in an earlier one."""
    review: bool = False
    failure: Failure | None = None


def survey(job: Job, destination: Storage) -> Iterator[list[Found]]:
    """Look up how far each item of a job is, in order, and yield a page of them at a time. Raises `StorageError`, `JobDamagedError`.

    Where the results of a page are kept, one request tells of all its items; else each takes one to three.
    """
    plan = Plan(job.recipe)

    def look(item: Item) -> Found:
        try:
            outputs = plan.outputs(item.key, item.etag, item.fields)
            # From the end, since most items have everything or nothing: what comes last says that the rest is there.
            for through in range(len(STAGES), 0, -1):
                stat = destination.head(outputs.marker(STAGES[through - 1]))
                if stat is None:
                    continue
                if through < len(STAGES):
                    return Found(item.index, through)
                made = Provenance.from_metadata(stat.metadata)
                return Found(item.index, through, ran=made.job == job.id, review=bool(made.reasons))
        except ItemError:
            pass  # its name was refused
        return Found(item.index)

    for page in read_pages(destination, job.id):
        kept = read_kept(destination, page)
        told = [_told(result) for result in kept] if kept else [None] * len(page)
        asked = in_parallel(destination, look, [item for item, found in zip(page, told, strict=True) if found is None])
        yield [found or next(asked) for found in told]


def _told(result: Result) -> Found | None:
    """Read a kept result; None where it does not say all."""
    if result.outcome == "failed":
        failure = Failure(result.index, result.key, result.stage, ", ".join(result.reasons), result.detail)
        return Found(result.index, STAGES.index(result.stage) if result.stage in STAGES else 0, failure=failure)
    if result.ran is None:
        return None
    return Found(result.index, len(STAGES), ran=result.ran, review=result.outcome == "needs_review")


class _Tally:
    """Counts what is found, a page at a time and in order."""

    def __init__(self, recorded: Iterator[Failure]) -> None:
        """Take also the failures that are `recorded`, in the order of their items."""
        self.items = 0
        self._through = dict.fromkeys(STAGES, 0)
        self._review = 0
        self._ran = 0
        self._failed = 0
        self._recorded = in_order(recorded)

    def add(self, page: Sequence[Found]) -> None:
        """Count a page."""
        self.items += len(page)
        for number, stage in enumerate(STAGES):
            self._through[stage] += sum(found.through > number for found in page)
        self._review += sum(found.review for found in page)
        self._ran += sum(found.ran for found in page)
        recorded = self._recorded(page[-1].index)
        unfinished = (found for found in page if found.through < len(STAGES))
        self._failed += sum(found.failure is not None or found.index in recorded for found in unfinished)

    def counts(self, *, listed: bool) -> Counts:
        """Return what was counted so far."""
        done = self._through[STAGES[-1]]
        return Counts(
            items=self.items,
            listed=listed,
            stages=dict(self._through),
            done=done,
            needs_review=self._review,
            failed=self._failed,
            skipped=done - self._ran,
        )


def _nothing(_: Counts) -> None:
    """Show nothing."""


def rebuild(job: Job, destination: Storage, progress: Progress, tick: Callable[[Counts], object] = _nothing) -> None:
    """Fill in the progress of a job that the broker has forgotten; what is not finished is then for `catch_up`.

    `tick` is told what was found so far, for every page of items. Raises what it raises, `BrokerError` and `StorageError`.
    """
    tally, recorded = _Tally(read_failures(destination, job.id)), in_order(read_failures(destination, job.id))
    failures = Failures(destination, progress)
    for page in survey(job, destination):
        tally.add(page)
        tick(tally.counts(listed=False))
        progress.restore(
            page[0].index,
            {stage: [found.through > number for found in page] for number, stage in enumerate(STAGES)},
            ran=[found.ran for found in page],
            review=[found.review for found in page],
        )
        for failure in [*(found.failure for found in page if found.failure), *recorded(page[-1].index).values()]:
            progress.fail(failure)
        failures.relieve()
    progress.listed(tally.items, complete=load_listed(destination, job.id))
    # Only now is the job known again: who is stopped before leaves the rest to the next.
    progress.begin(job.destination)


def counted(job: Job, destination: Storage, tick: Callable[[Counts], object] = _nothing) -> Counts:
    """Count a job from storage alone; `tick` is told what was counted so far, for every page of items. Raises `StorageError`, `JobDamagedError`."""
    tally = _Tally(read_failures(destination, job.id))
    for page in survey(job, destination):
        tally.add(page)
        tick(tally.counts(listed=False))
    return tally.counts(listed=load_listed(destination, job.id))
