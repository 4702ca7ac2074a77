"""Works a job's progress out again from storage, for a broker that came back empty."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from producer.sealing import read_failures
from shared.errors import ItemError
from shared.jobs import load_listed, read_pages
from shared.keys import STAGES
from shared.plan import Plan
from shared.progress import Counts
from shared.provenance import Provenance
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shared.jobs import Job
    from shared.keys import StageName
    from shared.messages import Item
    from shared.progress import Progress
    from shared.storage import Stat, Storage


Found = tuple["Item", dict["StageName", "Stat"]]
"""An item and, of each stage that it is through, its last output."""


def survey(job: Job, destination: Storage) -> Iterator[list[Found]]:
    """Look up what each item of a job has, in order, and yield a page of them at a time. Raises `StorageError`, `JobDamagedError`."""
    plan = Plan(job.recipe)

    def look(item: Item) -> Found:
        found: dict[StageName, Stat] = {}
        try:
            outputs = plan.outputs(item.key, item.etag, item.fields)
            # From the end, since most items have everything or nothing: what comes last says that the rest is there.
            for stage in reversed(STAGES):
                stat = destination.head(outputs.marker(stage))
                if stat is not None:
                    return item, dict.fromkeys(STAGES[: STAGES.index(stage) + 1], stat)
        except ItemError:
            pass  # its name was refused
        return item, found

    for page in read_pages(destination, job.id):
        yield list(in_parallel(destination, look, page))


def _made(found: Mapping[StageName, Stat]) -> Provenance | None:
    """Tell what made an item, if it is through every stage."""
    last = found.get(STAGES[-1])
    return Provenance.from_metadata(last.metadata) if last else None


def rebuild(job: Job, destination: Storage, progress: Progress, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Fill in the progress of a job that the broker has forgotten; what is not finished is then for `catch_up`.

    `meanwhile` is called for every page of items. Raises what it raises, `BrokerError` and `StorageError`.
    """
    items = 0
    for page in survey(job, destination):
        meanwhile()
        items = page[-1][0].index + 1
        ends = [_made(found) for _, found in page]
        progress.restore(
            page[0][0].index,
            {stage: [stage in found for _, found in page] for stage in STAGES},
            ran=[made is not None and made.job == job.id for made in ends],
            review=[made is not None and bool(made.reasons) for made in ends],
        )
    for failure in read_failures(destination, job.id):
        progress.fail(failure)
    progress.listed(items, complete=load_listed(destination, job.id))
    # Only now is the job known again: who is stopped before leaves the rest to the next.
    progress.begin(job.destination)


def counted(job: Job, destination: Storage) -> Counts:
    """Count a job from storage alone. Raises `StorageError`, `JobDamagedError`."""
    through = dict.fromkeys(STAGES, 0)
    items = review = skipped = 0
    failed = {failure.index for failure in read_failures(destination, job.id)}
    for item, found in chain.from_iterable(survey(job, destination)):
        items += 1
        for stage in found:
            through[stage] += 1
        made = _made(found)
        if made is not None:
            review += bool(made.reasons)
            skipped += made.job != job.id
            failed.discard(item.index)
    return Counts(
        items=items,
        listed=load_listed(destination, job.id),
        stages=through,
        done=through[STAGES[-1]],
        needs_review=review,
        failed=len(failed),
        skipped=skipped,
        sent=items,
    )
