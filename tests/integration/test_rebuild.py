"""A job that the broker has forgotten is worked out again from what is kept of it, with few requests."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from producer.failures import Failures
from producer.rebuild import Found, _Tally, counted, rebuild
from producer.results import Results
from producer.session import create_job
from shared.jobs import PAGE, ItemList, save_listed
from shared.keys import STAGES, job_prefix
from shared.messages import Photo
from shared.plan import Plan
from shared.progress import Failure, Progress
from shared.provenance import Provenance
from shared.recipe import Recipe
from shared.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from redis import Redis

    from shared.progress import Counts
    from shared.storage import Blob, Stat

ITEMS = 2 * PAGE + 10
FAILED, DOUBTFUL, SKIPPED = 3, 4, 5


class Counting(MemoryStorage):
    """Counts the requests for outputs."""

    heads = 0
    gets = 0

    def head(self, key: str) -> Stat | None:
        self.heads += not key.startswith("jobs/")
        return super().head(key)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        self.gets += 1
        return super().get(key, limit=limit)


class Ended:
    """A job that has ended, with an item that failed, one in doubt and one that an earlier job had made; its results are kept."""

    def __init__(self, client: Redis) -> None:
        self.out = Counting("out")
        self.job = create_job(MemoryStorage("photos"), self.out, Recipe())
        self.progress = Progress(client, self.job.id)
        self.progress.begin(self.job.destination)
        items = ItemList.open(self.out, self.job.id)
        plan = Plan(self.job.recipe)
        while items.count < ITEMS:
            photos = [Photo(f"{items.count + n:05}.jpg", "etag") for n in range(min(PAGE, ITEMS - items.count))]
            for item in items.append(photos):
                outputs = plan.outputs(item.key, item.etag)
                if item.index == FAILED:
                    self.out.put(outputs.marker("segmentation"), b"a mask")
                    continue
                doubts = ["empty"] if item.index == DOUBTFUL else []
                record = {"outcome": "needs_review" if doubts else "done", "reasons": doubts}
                made = Provenance(job="an earlier one" if item.index == SKIPPED else self.job.id, reasons=tuple(doubts))
                self.out.put(outputs.key("caption"), json.dumps(record).encode(), metadata=made.to_metadata())
        save_listed(self.out, self.job.id, ITEMS)
        through = [index != FAILED for index in range(ITEMS)]
        self.progress.restore(
            0,
            {stage: [True] * ITEMS if stage == STAGES[0] else through for stage in STAGES},
            ran=[index not in {FAILED, SKIPPED} for index in range(ITEMS)],
            review=[index == DOUBTFUL for index in range(ITEMS)],
        )
        self.progress.listed(ITEMS, complete=True)
        self.failure = Failure(FAILED, f"{FAILED:05}.jpg", "inpainting", "flat", "it is all of one colour")
        self.progress.fail(self.failure)
        self.before = self.progress.counts()
        list(Results(self.job, self.out, self.progress))
        self.out.heads = self.out.gets = 0

    def drop_kept(self, *firsts: int) -> None:
        for first in firsts:
            self.out.delete(f"{job_prefix(self.job.id)}results/{first:010d}.jsonl")

    def told(self, counts: Counts) -> tuple[object, ...]:
        of = (counts.items, counts.listed, counts.done, counts.needs_review, counts.failed, counts.skipped)
        return (*of, dict(counts.stages))


@pytest.fixture
def ended(client: Redis) -> Ended:
    return Ended(client)


def test_kept_results_are_counted_without_a_look_at_an_output(ended: Ended) -> None:
    """A page of them in place of a thousand requests, and the failures that were in no other place yet."""
    assert ended.told(counted(ended.job, ended.out)) == ended.told(ended.before)
    assert ended.out.heads == 0
    assert ended.out.gets <= 2 * 3 + 1, "a page of items, one of results, and the failures"


def test_only_items_that_no_kept_page_tells_of_are_looked_up(ended: Ended) -> None:
    """Pages of which something is still running."""
    ended.drop_kept(PAGE)
    assert ended.told(counted(ended.job, ended.out)) == ended.told(ended.before)
    assert ended.out.heads == PAGE


def test_kept_pages_that_do_not_tell_who_made_an_item_are_completed(ended: Ended) -> None:
    """As an export leaves them that nobody could tell."""
    key = f"{job_prefix(ended.job.id)}results/{0:010d}.jsonl"
    rows = [json.loads(line) for line in ended.out.get(key).data.splitlines()]
    for row in rows:
        row.pop("ran", None)
    ended.out.put(key, "\n".join(map(json.dumps, rows)).encode())
    assert ended.told(counted(ended.job, ended.out)) == ended.told(ended.before)
    assert ended.out.heads == PAGE - 1, "how it failed is told"


def test_a_broker_that_came_back_empty_is_told_what_is_kept(ended: Ended, client: Redis) -> None:
    """Outcomes and failures are as before, and whoever waits sees it get on."""
    outcomes = ended.progress.outcome_bits()
    client.flushdb()
    seen: list[Counts] = []
    rebuild(ended.job, ended.out, ended.progress, seen.append)
    assert ended.told(ended.progress.counts()) == ended.told(ended.before)
    assert ended.progress.outcome_bits() == outcomes
    assert list(Failures(ended.out, ended.progress)) == [ended.failure]
    assert ended.out.heads == 0
    assert [counts.items for counts in seen] == [PAGE, 2 * PAGE, ITEMS]
    assert not any(counts.finished for counts in seen)


def test_a_count_keeps_no_failures_in_memory() -> None:
    """Of a hundred million items a few in a hundred may be millions. Those that are told twice count once, and those that were made since not at all."""
    pages = 200
    tracemalloc.start()
    tally = _Tally(Failure(index, "a.jpg", "segmentation", "flat", "") for index in range(pages * PAGE))
    for first in range(0, pages * PAGE, PAGE):
        again = Found(first, failure=Failure(first, "a.jpg", "segmentation", "flat", ""))
        tally.add([again, Found(first + 1, len(STAGES)), *map(Found, range(first + 2, first + PAGE))])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tally.counts(listed=True).failed == pages * (PAGE - 1)
    assert most < 2_000_000


def test_whoever_counts_sees_it_get_on(ended: Ended) -> None:
    """A hundred million items take their time."""
    seen: list[Counts] = []
    counted(ended.job, ended.out, seen.append)
    assert [counts.done for counts in seen] == [PAGE - 1, 2 * PAGE - 1, ITEMS - 1]
