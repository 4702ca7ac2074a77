"""Why items failed is held by the broker and, where that is much, by the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from producer import repairs
from producer.follow import Summary
from producer.gathering import Gatherer
from producer.rebuild import rebuild
from producer.results import Results
from producer.sealing import read_failures, seal
from producer.session import Session, create_job
from shared.errors import JobDamagedError, StorageRefusedError
from shared.jobs import PAGE, ItemList, save_listed
from shared.keys import STAGES, job_prefix
from shared.messages import Photo
from shared.progress import Failure
from shared.recipe import Recipe
from shared.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from shared.settings import Settings

ITEMS = PAGE + 200


class Refusing(MemoryStorage):
    """Takes no failures while it is told so."""

    refuses = False

    def put(self, key: str, data: bytes, **options: object) -> None:
        if self.refuses and "/failed/" in key:
            raise StorageRefusedError("it is full")
        super().put(key, data, **options)


class Failing:
    """A job whose items all fail, as segmentation leaves it; three of the first page by other reasons."""

    def __init__(self, settings: Settings) -> None:
        self.source = MemoryStorage("photos")
        self.out = Refusing("out")
        job = create_job(self.source, self.out, Recipe())
        self.session = Session(job, self.source, self.out, settings)
        self.progress = self.session.progress
        items = ItemList.open(self.out, job.id)
        while items.count < ITEMS:
            count = min(PAGE, ITEMS - items.count)
            items.append([Photo(f"{items.count + number:05}.jpg", "etag") for number in range(count)])
        save_listed(self.out, job.id, ITEMS)
        self.progress.begin(job.destination)
        self.progress.listed(ITEMS, complete=True)
        self.progress.sent(ITEMS)
        self.told = [self.failure(index) for index in range(ITEMS)]
        for failure in self.told:
            self.progress.fail(failure)

    def failure(self, index: int, reason: str = "") -> Failure:
        given = reason or ("no_product" if index in {3, 5, 8} else "unreadable")
        return Failure(index, f"{index:05}.jpg", STAGES[0], given, "cut “short”")

    def look(self) -> None:
        Gatherer(self.session.job, self.out, self.progress).look(self.progress.counts())

    def take_back(self, indices: Sequence[int]) -> None:
        """Let items count as unfinished, as running them again does, without workers that would."""
        reasons = {index: failure.reason for index, failure in self.session.failures.of(indices).items()}
        self.progress.forget(reasons)


@pytest.fixture
def failing(client: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    del client  # of an empty broker
    monkeypatch.setattr("producer.failures.HELD", 100)
    job = Failing(settings)
    yield job
    job.session.client.close()


def test_few_failures_stay_in_the_broker(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is gained by it nothing is moved."""
    monkeypatch.setattr("producer.failures.HELD", ITEMS)
    failing.look()
    assert failing.progress.holds() == ITEMS


def test_a_job_that_fails_as_a_whole_does_not_fill_the_broker(failing: Failing) -> None:
    """Long before it has ended. Who asks is told the same as before."""
    failing.progress.listed(ITEMS, complete=False)
    assert failing.progress.holds() == ITEMS
    before = failing.progress.counts(), failing.progress.reasons()
    failing.look()
    assert failing.progress.holds() == 0
    assert list(failing.session.failures) == failing.told
    assert (failing.progress.counts(), failing.progress.reasons()) == before
    assert [row.reasons for row in Results(failing.session.job, failing.out, failing.progress)] == [
        (failure.reason,) for failure in failing.told
    ]
    seal(failing.out, failing.progress, Summary.of(failing.session.job.id, failing.progress.counts(), 1.0))
    assert list(read_failures(failing.out, failing.session.job.id)) == failing.told


def test_what_the_storage_keeps_is_run_again_like_any_other(failing: Failing) -> None:
    """Counted out and in again; its neighbours are told as before, and later failures in place of earlier ones."""
    failing.look()
    taken = [3, 4, *range(10, 160)]
    failing.take_back(taken)
    assert failing.progress.ended([3, 4, 5]) == [False, False, True]
    assert failing.progress.reasons() == {"unreadable": ITEMS - 154, "no_product": 2}
    assert [failure.index for failure in failing.session.failures] == [0, 1, 2, *range(5, 10), *range(160, ITEMS)]
    again = {index: failing.failure(index, "too_large") for index in taken if index != 4}
    for failure in again.values():
        failing.progress.fail(failure)
    for stage in STAGES:
        failing.progress.finish(stage, 4, ran=True, review=False)
    counts = failing.progress.counts()
    assert (counts.done, counts.failed) == (1, ITEMS - 1)
    expected = [again.get(failure.index, failure) for failure in failing.told if failure.index != 4]
    assert list(failing.session.failures) == expected
    assert failing.progress.holds() == 151
    failing.look()
    assert failing.progress.holds() == 0
    assert list(failing.session.failures) == expected
    assert failing.progress.reasons() == {"unreadable": ITEMS - 154, "no_product": 2, "too_large": 151}


def test_a_retry_queues_what_the_storage_keeps(failing: Failing, client: Redis) -> None:
    """By reason and stage, as it was recorded."""
    failing.look()
    for index in (3, 5, 8):
        failing.source.put(f"{index:05}.jpg", b"a photo")
    assert repairs.retry(failing.session, reason="no_product") == 3
    assert failing.progress.reasons() == {"unreadable": ITEMS - 3}
    assert failing.progress.counts().failed == ITEMS - 3
    assert client.llen(STAGES[0]) == 3
    client.delete(STAGES[0])


def test_a_failure_that_is_kept_stands_until_it_is_run_again(failing: Failing) -> None:
    """Another copy of its message may end later, and otherwise: the item would count twice, or its reason for ever."""
    failing.look()
    before = failing.progress.counts(), failing.progress.reasons()
    failing.progress.fail(failing.failure(7, "too_large"))
    failing.progress.finish(STAGES[-1], 7, ran=True, review=True)
    assert (failing.progress.counts(), failing.progress.reasons()) == before
    assert failing.session.failures.of([7]) == {7: failing.failure(7)}


def test_a_failure_that_changes_meanwhile_is_not_let_go(failing: Failing) -> None:
    """It was kept as it was; as it is now it is known to the broker alone."""
    again = failing.failure(9, "too_large")
    failing.progress.fail(again)
    failing.progress.release([failing.failure(9), failing.failure(10)])
    assert failing.progress.failures_of([9, 10]) == {9: again, 10: None}


def test_failures_that_somebody_deleted_are_told_as_such(failing: Failing) -> None:
    """How many there are is known all the same, and they can be run again."""
    failing.look()
    prefix = f"{job_prefix(failing.session.job.id)}failed/{PAGE:010d}/"
    for stat in list(failing.out.list(prefix)):
        failing.out.delete(stat.key)
    first, *_ = failing.session.failures.of([PAGE + 1]).values()
    assert (first.key, first.reason) == (f"{PAGE + 1:05}.jpg", "missing")
    assert "deleted" in first.detail
    assert sum(1 for _ in failing.session.failures) == ITEMS
    failing.take_back([PAGE + 1])
    assert failing.progress.counts().failed == ITEMS - 1
    failing.out.put(f"{prefix}1.jsonl", b'{"index": 1')
    with pytest.raises(JobDamagedError, match=f"{PAGE:010d}/1.jsonl is damaged: restore it or delete it"):
        list(failing.session.failures)


def test_where_the_storage_takes_nothing_the_broker_goes_on_holding_them(failing: Failing) -> None:
    """Nothing is lost, and nothing waits."""
    failing.out.refuses = True
    failing.look()
    assert failing.progress.holds() == ITEMS
    assert list(failing.session.failures) == failing.told


def test_a_broker_that_came_back_empty_does_not_hold_what_is_kept(failing: Failing, client: Redis) -> None:
    """Its bits and the counts by reason are worked out again."""
    failing.look()
    before = failing.progress.reasons()
    client.flushdb()
    rebuild(failing.session.job, failing.out, failing.progress)
    assert failing.progress.holds() == 0
    assert failing.progress.reasons() == before
    assert list(failing.session.failures) == failing.told
