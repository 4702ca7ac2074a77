"""Results are gathered while a job runs, so that handing it over reads a file per thousand photos."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from producer.gathering import Gatherer
from producer.results import Results
from producer.session import create_job
from shared.errors import StorageError
from shared.jobs import PAGE, ItemList, save_listed
from shared.keys import STAGES, job_prefix
from shared.messages import Photo
from shared.plan import Plan
from shared.progress import Progress
from shared.recipe import Recipe
from shared.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from redis import Redis

    from shared.storage import Blob

ITEMS = 2 * PAGE + 300


class Counting(MemoryStorage):
    """Counts the records that are read of it, and can be away."""

    reads = 0
    away = False

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        if self.away:
            raise StorageError("it does not answer")
        self.reads += "caption-" in key
        return super().get(key, limit=limit)


class Running:
    """A job of which some items have ended, as captioning leaves it."""

    def __init__(self, client: Redis) -> None:
        self.out = Counting("out")
        self.job = create_job(MemoryStorage("photos"), self.out, Recipe())
        items = ItemList.open(self.out, self.job.id)
        plan = Plan(self.job.recipe)
        while items.count < ITEMS:
            photos = [Photo(f"{items.count + n:05}.jpg", "etag") for n in range(min(PAGE, ITEMS - items.count))]
            for item in items.append(photos):
                record = {"outcome": "done", "captions": {"en": item.key}}
                self.out.put(plan.outputs(item.key, item.etag).key("caption"), json.dumps(record).encode())
        self.progress = Progress(client, self.job.id)
        self.progress.begin(self.job.destination)
        self.progress.listed(ITEMS, complete=False)
        self.gatherer = Gatherer(self.job, self.out, self.progress)

    def end(self, first: int, count: int) -> None:
        flags = [True] * count
        self.progress.restore(first, dict.fromkeys(STAGES, flags), ran=flags, review=[False] * count)

    def look(self) -> bool:
        return self.gatherer.look(self.progress.counts())

    def kept(self) -> list[str]:
        prefix = f"{job_prefix(self.job.id)}results/"
        return [stat.key.removeprefix(prefix) for stat in self.out.list(prefix)]


@pytest.fixture
def running(client: Redis) -> Running:
    return Running(client)


def test_a_page_is_gathered_as_soon_as_all_of_it_has_ended(running: Running) -> None:
    """The last one not before the source is listed: it may grow. Another process goes on where this one was."""
    running.end(0, PAGE - 8)
    assert not running.look()
    assert running.kept() == []
    running.end(PAGE - 8, 8 + 296)
    assert not running.look()
    assert running.kept() == ["0000000000.jsonl"]
    running.end(0, ITEMS)
    running.look()
    assert len(running.kept()) == 2
    save_listed(running.out, running.job.id, ITEMS)
    running.progress.listed(ITEMS, complete=True)
    running.gatherer = Gatherer(running.job, running.out, running.progress)
    assert running.look()
    assert len(running.kept()) == 3
    assert running.out.reads == ITEMS


def test_a_table_of_what_was_gathered_reads_no_record(running: Running) -> None:
    """It reads the pages, in order, and tells what the records told."""
    running.end(0, ITEMS)
    running.progress.listed(ITEMS, complete=True)
    assert running.look()
    running.out.reads = 0
    rows = list(Results(running.job, running.out, running.progress))
    assert running.out.reads == 0
    assert [row.index for row in rows] == list(range(ITEMS))
    assert {row.outcome for row in rows} == {"done"}
    assert rows[1234].captions == {"en": "01234.jpg"}


def test_a_storage_that_is_away_is_asked_again(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Gathering waits for it, with a line in the log, and stops nothing else."""
    running.end(0, ITEMS)
    running.progress.listed(ITEMS, complete=True)
    running.out.away = True
    assert not running.look()
    assert "gathered later: it does not answer" in caplog.text
    running.out.away = False
    assert running.look()
    assert len(running.kept()) == 3


def test_gathering_leaves_time_for_what_else_a_keeper_does(running: Running) -> None:
    """A long job that was never gathered is so over many looks."""
    running.end(0, ITEMS)
    running.progress.listed(ITEMS, complete=True)
    pages = []
    while not running.gatherer.look(running.progress.counts(), 1e-6, lambda: pages.append(running.kept())):
        pass
    assert [len(kept) for kept in pages] == [1, 2, 3]
