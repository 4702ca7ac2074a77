"""What an operator does to a job that exists: run some of it again, cancel, pause, remake with another recipe, purge."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from producer.records import read_record
from producer.results import forget_results
from producer.sealing import unseal
from producer.selection import Selection
from producer.session import Session, create_job
from shared.bitmap import bit
from shared.connection import connect
from shared.errors import ItemError, JobDamagedError, JobForgottenError, LeaseHeldError, ObjectMissingError, UsageError
from shared.jobs import PAGE, load_listed, load_summary, read_page, read_pages, save_items
from shared.keys import STAGES, job_prefix
from shared.plan import Plan, sections
from shared.progress import Progress
from shared.provenance import Provenance
from shared.recipe import Recipe
from shared.storage import in_parallel, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shared.keys import StageName
    from shared.messages import Item
    from shared.progress import Counts
    from shared.settings import Settings

Chosen = tuple[int, "StageName"]
"""An item's index, and the stage from which it is run again."""


def _stage(name: str) -> StageName:
    return next((stage for stage in STAGES if stage == name), STAGES[0])


def retry(
    session: Session,
    *,
    stage: StageName | None = None,
    reason: str | None = None,
    review: bool = False,
    tick: Callable[[Counts], None] = lambda _: None,
) -> int:
    """Run the failed items again, or with `review` the doubtful ones, of one stage or reason alone where asked; return how many.

    Photos are looked up again, so that one that was replaced since is taken as it is now. Doubtful outputs are removed first, from
    the stage on that doubted. Raises `LeaseHeldError` while the job is being fed, `UsageError` for a reason that nothing failed for.
    """
    with session.producing(tick) as submitter:
        known = session.progress.reasons()
        if reason is not None and not review and known and reason not in known:
            raise UsageError(f"nothing failed for the reason {reason!r}: choose {', '.join(known)}")
        chosen = _doubtful(session, stage, reason) if review else _failed(session, stage, reason)
        number = 0
        for first, page in groupby(chosen, lambda pair: pair[0] // PAGE * PAGE):
            since = dict(page)
            if not number:
                unseal(session.destination, session.job.id)
                session.progress.set_state("running")
                submitter.go_on()
            number += len(since)
            items = _looked_up(session, first, since)
            forget_results(session.destination, session.job.id, since)
            for begin in STAGES:
                some = [item for item in items if since[item.index] == begin]
                submitter.again(some, begin, partial(_clear, session, begin if review else None))
    return number


def _failed(session: Session, stage: StageName | None, reason: str | None) -> Iterator[Chosen]:
    for failure in session.failures:
        if stage in {None, failure.stage} and reason in {None, failure.reason}:
            yield failure.index, _stage(failure.stage)


def _doubtful(session: Session, stage: StageName | None, reason: str | None) -> Iterator[Chosen]:
    plan = Plan(session.job.recipe)
    done, doubts, _ = session.progress.outcome_bits()

    def judge(item: Item) -> Chosen | None:
        key = plan.outputs(item.key, item.etag, item.fields).key("caption")
        try:
            record = read_record(session.destination, key)
        except (ObjectMissingError, JobDamagedError):
            return item.index, STAGES[0]
        if reason is not None and reason not in record.get("reasons", ()):
            return None
        # Doubts are handed on: the first stage that has any is where they arose.
        arose = next((name for name in STAGES if record.get("stages", {}).get(name, {}).get("reasons")), STAGES[-1])
        return (item.index, arose) if stage in {None, arose} else None

    for page in read_pages(session.destination, session.job.id):
        doubted = [item for item in page if bit(done, item.index) and bit(doubts, item.index)]
        yield from filter(None, in_parallel(session.destination, judge, doubted))


def _looked_up(session: Session, first: int, chosen: Iterable[int]) -> list[Item]:
    """Read some items of a page; where a photo is not what was listed, correct the page."""
    page = read_page(session.destination, session.job.id, first)

    def look(index: int) -> Item:
        item = page[index - first]
        with suppress(ItemError):
            stat = session.source.head(item.key)
            return replace(item, etag=stat.etag if stat else "")
        return item

    items = list(in_parallel(session.source, look, chosen))
    if any(item != page[item.index - first] for item in items):
        for item in items:
            page[item.index - first] = item
        save_items(session.destination, page)
    return items


def _clear(session: Session, since: StageName | None, items: Sequence[Item]) -> None:
    """Make room for items that count as unfinished now; delete their outputs from a stage on, where one is given."""
    # Until then others saw what has ended, and may have written how.
    unseal(session.destination, session.job.id)
    forget_results(session.destination, session.job.id, [item.index for item in items])
    if since is None:
        return
    plan = Plan(session.job.recipe)
    for item in items:
        outputs = plan.outputs(item.key, item.etag, item.fields)
        # The later stages first, and of each stage first what says that it is done.
        for stage in reversed(STAGES[STAGES.index(since) :]):
            for key in reversed(list(outputs.keys[stage].values())):
                session.destination.delete(key)


def cancel(session: Session) -> bool:
    """Let the workers drop what is queued, and the producer list no further; what runs, finishes. Tell whether all had been listed.

    Raises `JobForgottenError`, `UsageError`.
    """
    whole = _going_on(session).listed
    session.progress.set_state("cancelled")
    # A producer that is at work records the rest itself.
    with suppress(LeaseHeldError), session.producing() as submitter:
        submitter.catch_up()
        submitter.feed(())
    return whole


def pause(session: Session) -> int:
    """Let the producer queue nothing more until `resume`; return how many photos are queued already and go on."""
    counts = _going_on(session)
    session.progress.set_state("paused")
    return counts.sent - counts.done - counts.failed


def resume(session: Session) -> bool:
    """Go on after a pause; tell whether all of it will: a producer is there, or everything is queued."""
    counts = _going_on(session)
    if counts.state == "cancelled":
        msg = f"the job was cancelled: `vitrina retry {session.job.id} --reason cancelled` runs what was listed"
        raise UsageError(msg)
    session.progress.set_state("running")
    return session.fed() or (counts.listed and counts.sent >= counts.items)


def _going_on(session: Session) -> Counts:
    session.ask_broker()
    counts = session.progress.counts()
    if not counts.known:
        raise JobForgottenError(f"the broker does not know job {session.job.id}: it has ended, or ran elsewhere")
    if counts.finished:
        raise UsageError(f"job {session.job.id} has ended: there is nothing left of it to stop")
    return counts


def rerun(
    session: Session, since: StageName, recipe: Recipe, *, priority: bool = False, incomplete: bool = False
) -> Session:
    """Make a job of the same photos with the old one's recipe but for the sections of later stages, from `since` on, that `recipe` names.

    A job whose photos are not all listed is refused, since its remake would pass for a whole one, unless `incomplete` asks for those that are.
    Raises `UsageError` for that, `RecipeError` when the recipes do not go together, and `BrokerError` before anything is written.
    """
    session.ask_broker()
    if not incomplete and not load_listed(session.destination, session.job.id):
        watched = session.job.selection.get("watch")
        instead = "it is watched, and stays open" if watched else f"`vitrina submit --resume {session.job.id}` first"
        raise UsageError(
            f"not all photos of job {session.job.id} are listed: {instead}; --partial takes those that are"
        )
    kept = STAGES[: STAGES.index(since)]
    old = {name: part for stage in kept for name, part in sections(session.job.recipe, stage).items()}
    unnamed = Recipe.model_fields.keys() - recipe.model_fields_set
    old |= {name: getattr(session.job.recipe, name) for name in unnamed}
    merged = Recipe.from_mapping(json.loads(recipe.model_copy(update=old).to_json()))
    job = create_job(
        session.source,
        session.destination,
        merged,
        Selection(job=session.job.id),
        priority=priority,
    )
    return Session(job, session.source, session.destination, session.settings)


def forget(job: str, settings: Settings) -> bool:
    """Let the broker forget a job whose records somebody has deleted; tell whether it is one. Raises `BrokerError`, `StorageError`."""
    progress = Progress(connect(settings), job)
    where = progress.destination()
    gone = where is not None and open_storage(where, settings).head(job_prefix(job) + "job.json") is None
    if gone:
        progress.drop()
    return gone


def purge(session: Session) -> int:
    """Delete the outputs that this job made, and its records; return how many outputs. Raises `UsageError` while it is going on.

    What another job had made, and this one found done, stays.
    """
    counts = session.progress.counts()
    if counts.known and not counts.finished:
        raise UsageError(f"job {session.job.id} is going on: `vitrina cancel {session.job.id}` first")
    sealed = load_summary(session.destination, session.job.id) is not None
    if not counts.known and not sealed and "broker" not in session.settings.model_fields_set:
        msg = f"job {session.job.id} may be going on elsewhere: name its broker with --broker or, when that is gone, any that answers"
        raise UsageError(msg)
    plan = Plan(session.job.recipe)

    def remove(item: Item) -> int:
        removed = 0
        with suppress(ItemError):
            outputs = plan.outputs(item.key, item.etag, item.fields)
            for stage in reversed(STAGES):
                stat = session.destination.head(outputs.marker(stage))
                if stat is None or Provenance.from_metadata(stat.metadata).job != session.job.id:
                    continue
                for key in reversed(list(outputs.keys[stage].values())):
                    session.destination.delete(key)
                    removed += 1
        return removed

    removed = 0
    for page in read_pages(session.destination, session.job.id):
        removed += sum(in_parallel(session.destination, remove, page))
    # What the job is known by goes last: until then it can be purged again.
    prefix = job_prefix(session.job.id)
    records = [stat.key for stat in session.destination.list(prefix)]
    last = [prefix + "job.json", prefix + "recipe.json"]
    list(in_parallel(session.destination, session.destination.delete, [key for key in records if key not in last]))
    for key in last:
        session.destination.delete(key)
    session.progress.drop()
    return removed
