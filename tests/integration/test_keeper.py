"""Who looks after jobs that nobody follows, through a real broker and real workers with instant models."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import pytest
from made_jobs import Catalogue, followed, unfed, wait_until

from producer.follow import Summary
from producer.keeper import KEPT, Keeper
from producer.rebuild import rebuild
from producer.reconcile import Reconciler
from producer.repairs import retry
from producer.sealing import read_failures
from producer.session import Session, create_job
from shared.jobs import PAGE, ItemList, load_summary, save_listed
from shared.messages import Photo
from shared.progress import Progress
from shared.queues import in_flight
from shared.recipe import Recipe
from shared.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery
    from redis import Redis

    from shared.progress import Counts
    from shared.settings import Settings


class Kept:
    """Keepers that run in threads."""

    def __init__(self, settings: Settings, outs: list[str]) -> None:
        self._stop = threading.Event()
        self.keepers = [Keeper(settings, outs) for _ in range(2)]
        self._threads = [threading.Thread(target=keeper.run, args=(self._stop,)) for keeper in self.keepers]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_keepers_end_what_nobody_follows(catalogue: Catalogue, client: Redis, tmp_path: Path) -> None:
    """Of two, one is active: it restores a job that the broker forgot, sends what was lost, and writes the outcome."""
    for number in range(40):
        catalogue.add(f"{number}.jpg", "slow:0.05")
    catalogue.add("cut.jpg", "bad")
    session = unfed(catalogue)
    session.feed()
    wait_until(lambda: session.progress.counts().done > 5)
    client.flushdb()
    with Kept(catalogue.settings, [str(catalogue.out)]) as kept:
        wait_until(lambda: load_summary(session.destination, session.job.id) is not None)
        assert [keeper.active for keeper in kept.keepers].count(True) == 1
        # What it ended with is ready to be handed over.
        wait_until(lambda: len(list(session.destination.list(f"jobs/{session.job.id}/results/"))) == 1)
    assert client.exists(KEPT)
    summary = load_summary(session.destination, session.job.id)
    assert summary is not None
    assert (summary["items"], summary["done"], summary["failed"]) == (41, 40, 1)
    assert [failure.key for failure in read_failures(session.destination, session.job.id)] == ["cut.jpg"]


def sealed(session: Session) -> bool:
    """Tell whether somebody has written how a job ended."""
    return load_summary(session.destination, session.job.id) is not None


def test_a_keeper_feeds_what_nobody_feeds_and_waits_for_none(catalogue: Catalogue, client: Redis) -> None:
    """A job that the broker forgot is queued as its window has room; while it is paused the others are looked after, and the keeper stops when told."""
    for number in range(60):
        catalogue.add(f"{number:02}.jpg", "slow:0.02")
    long, short = unfed(catalogue), unfed(catalogue, Recipe.from_mapping({"background": {"model": "color"}}))
    long.feed()
    client.flushdb()
    settings = catalogue.settings.model_copy(update={"window": 10})
    with Kept(settings, [str(catalogue.out)]):
        wait_until(long.progress.destination)
        long.progress.set_state("paused")
        short.feed()
        wait_until(lambda: sealed(short))
        assert not sealed(long)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    assert long.progress.counts().sent < 60
    long.progress.set_state("running")
    queued = []
    with Kept(settings, [str(catalogue.out)]):
        while not sealed(long):
            queued.append(len(in_flight(client).get(long.job.id, ())))
            time.sleep(0.02)
    assert max(queued) <= 10
    counts = long.progress.counts()
    assert (counts.items, counts.done, counts.failed) == (60, 60, 0)


def test_records_of_others_in_the_broker_stop_no_keeper(catalogue: Catalogue, client: Redis) -> None:
    """Whoever can write to the broker cannot end what looks after the jobs."""
    odd = [b"7", b"[]", b"{}", b"Infinity", b'[{"body": "[[{}]]", "properties": {}}]']
    endless = b'[{"body": "[[{\\"job\\": \\"x\\", \\"index\\": Infinity}]]", "properties": {}}, "", ""]'
    client.hset("unacked", mapping={f"odd{number}": record for number, record in enumerate([*odd, endless])})
    catalogue.add("a.jpg", "slow:2")
    session = unfed(catalogue)
    session.feed()
    assert in_flight(client)[session.job.id] == {0}
    with Kept(catalogue.settings, []):
        wait_until(lambda: sealed(session))
    client.hdel("unacked", *(f"odd{number}" for number in range(len(odd) + 1)))


def test_a_keeper_that_stops_while_it_works_a_job_out_leaves_it_to_the_next(client: Redis) -> None:
    """The job counts as forgotten until all of it is known again."""
    source, destination = MemoryStorage("photos"), MemoryStorage("out")
    job = create_job(source, destination, Recipe())
    items = ItemList.open(destination, job.id)
    for page in range(2):
        items.append([Photo(f"{page}/{number:04}.jpg", "etag") for number in range(PAGE)])
    save_listed(destination, job.id, items.count)
    progress = Progress(client, job.id)
    pages = iter([None])
    with pytest.raises(StopIteration):
        rebuild(job, destination, progress, lambda _: next(pages))
    assert not progress.counts().known
    rebuild(job, destination, progress)
    counts = progress.counts()
    assert (counts.known, counts.items, counts.listed, counts.sent) == (True, 2 * PAGE, True, 0)


def test_an_outcome_that_is_written_while_a_retry_begins_does_not_stay(catalogue: Catalogue) -> None:
    """Until the first item is taken back, whoever asks sees a job that has ended, and writes how."""
    catalogue.add("cut.jpg", "bad")
    session = unfed(catalogue)
    session.feed()
    wait_until(lambda: session.progress.counts().finished)
    session.finish(1.0, None)
    catalogue.add("cut.jpg", "a whole photo")

    class Asked(MemoryStorage):
        """The photos, about whose job somebody asks whenever one is looked up."""

        def head(self, key: str) -> object:
            counts = session.progress.counts()
            session.seal_if_ended(counts, Summary.of(session.job.id, counts, 1.0))
            return photos.head(key)

    photos, session.source = session.source, Asked()  # type: ignore[assignment] # head is all that is asked of it
    assert retry(session) == 1
    wait_until(lambda: session.progress.counts().finished)
    with Kept(catalogue.settings, []):
        wait_until(lambda: sealed(session))
    summary = load_summary(session.destination, session.job.id)
    assert summary is not None
    assert (summary["done"], summary["failed"]) == (1, 0)
    assert list(read_failures(session.destination, session.job.id)) == []


def test_a_job_that_is_worked_out_again_counts_as_before(catalogue: Catalogue, client: Redis) -> None:
    """What was skipped, is doubtful or has failed is so afterwards, and so is what is done of it."""
    catalogue.add("0.jpg", "photo")
    first = unfed(catalogue)
    first.feed()
    wait_until(lambda: first.progress.counts().finished)
    for number in range(1, 11):
        catalogue.add(f"{number}.jpg", {3: "doubt:inpainting", 7: "bad"}.get(number, "photo"))
    session = unfed(catalogue)
    session.feed()
    wait_until(lambda: session.progress.counts().finished)
    session.finish(1.0, None)
    before = session.progress.counts()
    outcomes = [bits.rstrip(b"\0") for bits in session.progress.outcome_bits()]
    assert (before.done, before.needs_review, before.failed, before.skipped) == (10, 1, 1, 1)
    client.flushdb()
    rebuild(session.job, session.destination, session.progress)
    after = session.progress.counts()
    assert replace(after, sent=before.sent, changed=before.changed) == before
    assert [bits.rstrip(b"\0") for bits in session.progress.outcome_bits()] == outcomes


def test_a_keeper_that_was_held_up_leaves_the_rest_to_the_one_that_took_over(
    settings: Settings, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds out before the next job, and amid one that takes long; when the other ends it goes on."""
    client.flushdb()
    stop, looked = threading.Event(), list[tuple[Keeper, str]]()
    first, second = Keeper(settings), Keeper(settings)
    monkeypatch.setattr(Keeper, "_jobs", lambda _: ["one", "two", "three"])

    def held_up(keeper: Keeper, job: str, stop: threading.Event) -> None:
        looked.append((keeper, job))
        if keeper is first and job == "two":
            client.delete("vitrina:lease:keeper")  # as when it has run out
            second.look(stop)
            keeper._hold(stop)
            looked.append((keeper, "two to its end"))

    monkeypatch.setattr(Keeper, "_look_at", held_up)
    first.look(stop)
    assert looked == [(first, "one"), (first, "two"), (second, "one"), (second, "two"), (second, "three")]
    assert (first.active, second.active) == (False, True)
    second._lease.release()
    looked.clear()
    monkeypatch.setattr(Keeper, "_look_at", lambda keeper, job, _: looked.append((keeper, job)))
    first.look(stop)
    assert looked == [(first, "one"), (first, "two"), (first, "three")]
    assert first.active


def test_a_keeper_that_hangs_says_so(settings: Settings, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor starts it again. One that waits for its next look, or whose broker is away, is well."""
    client.flushdb()
    monkeypatch.setattr("producer.keeper.LONGEST_WAIT", 4.0)
    stop, answers = threading.Event(), threading.Event()
    monkeypatch.setattr(Keeper, "_jobs", lambda _: ["one"])
    monkeypatch.setattr(Keeper, "_look_at", lambda *_: answers.wait(60))
    keeper = Keeper(settings.model_copy(update={"look_every": 0.2}))
    looking = threading.Thread(target=keeper.run, args=(stop,))
    looking.start()
    try:
        assert keeper.alive
        wait_until(lambda: not keeper.alive)
        answers.set()
        wait_until(lambda: keeper.alive)
        time.sleep(5)
        assert keeper.alive
    finally:
        answers.set()
        stop.set()
        looking.join()


def test_jobs_that_have_ended_keep_no_keeper_from_those_that_go_on(
    catalogue: Catalogue, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that finds many with results to gather takes about as long over all of them as between two looks."""
    client.flushdb()
    catalogue.add("0.jpg", "photo")
    ended = [unfed(catalogue) for _ in range(4)]
    for session in ended:
        session.feed()
        followed(session)
    gathered: list[str] = []

    def gather(reconciler: Reconciler, _: Counts) -> bool:
        gathered.append(reconciler._job.id)
        time.sleep(catalogue.settings.look_every)
        return True

    monkeypatch.setattr(Reconciler, "gather", gather)
    keeper, stop = Keeper(catalogue.settings), threading.Event()
    keeper.look(stop)
    assert len(gathered) <= 1
    assert all(map(sealed, ended))
    while len(gathered) < len(ended):
        keeper.look(stop)
    assert set(gathered) == {session.job.id for session in ended}


def test_a_job_that_another_looks_after_meanwhile_is_left_to_it(settings: Settings, app: Celery, client: Redis) -> None:
    """Also in the midst of working out what the broker has forgotten."""
    client.flushdb()
    source, destination = MemoryStorage("photos"), MemoryStorage("out")
    job = create_job(source, destination, Recipe())
    items = ItemList.open(destination, job.id)
    for page in range(2):
        items.append([Photo(f"{page}/{number:04}.jpg", "etag") for number in range(PAGE)])
    save_listed(destination, job.id, items.count)
    progress = Progress(client, job.id)
    reconciler = Reconciler(app, client, job, destination, settings)
    lease = f"vitrina:lease:keeper:{job.id}"
    pages: list[None] = []

    def other_takes_over() -> None:
        pages.append(None)
        client.set(lease, "another")

    time.sleep(settings.look_every)
    reconciler.look(progress.counts(), other_takes_over)
    assert (len(pages), progress.counts().known) == (1, False)
    assert reconciler.gather(progress.counts())
    client.delete(lease)
    time.sleep(settings.look_every)
    reconciler.look(progress.counts(), lambda: pages.append(None))
    assert progress.counts().known
    client.flushdb()
