"""How a job is fed, through a real broker and real workers with instant models: by one producer at a time, whatever dies."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from made_jobs import ROOT, Catalogue, Workers, followed, unfed, wait_until

from producer import repairs
from producer.rebuild import counted
from producer.selection import Selection
from producer.session import Session, create_job
from producer.submit import Submitter
from shared.errors import JobDamagedError, JobNotFoundError, LeaseHeldError, StorageError
from shared.jobs import list_jobs, read_items, read_photos, save_photos
from shared.keys import STAGES
from shared.lease import Lease
from shared.messages import Photo
from shared.progress import Progress
from shared.queues import in_flight
from shared.recipe import Recipe
from shared.storage import MemoryStorage, open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery
    from redis import Redis

    from shared.jobs import Job
    from shared.progress import Counts
    from shared.storage import Storage


def submit_elsewhere(catalogue: Catalogue, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a producer in a process of its own."""
    broker = catalogue.settings.broker.get_secret_value()
    command = [sys.executable, "-m", "producer.cli", "submit", *arguments, "--broker", broker, "--window", "50"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_producer_that_is_killed_is_followed_by_another(catalogue: Catalogue, client: Redis) -> None:
    """Killed at random moments while it lists and feeds; whoever resumes misses nothing, and every output is there once."""
    for number in range(800):
        catalogue.add(f"{number:04d}.jpg", f"photo {number}")
    session = unfed(catalogue)
    chance = random.Random(7)  # noqa: S311 - no secret
    killed = 0
    while client.hget(f"vitrina:job:{session.job.id}:info", "listed") != b"1":
        with submit_elsewhere(catalogue, "--resume", session.job.id, "--out", str(catalogue.out)) as producer:
            wait_until(lambda: session.fed() or producer.poll() is not None)
            try:
                producer.wait(chance.uniform(0.1, 1.5) if killed < 6 else 60)
            except subprocess.TimeoutExpired:
                producer.kill()
                killed += 1
        # Its lease runs out by itself; waiting for that would only make the test long.
        client.delete(f"vitrina:lease:producer:{session.job.id}")
    assert killed
    assert followed(session) == (800, 800, 0)
    assert [item.key for item in read_items(session.destination, session.job.id)] == sorted(
        path.name for path in catalogue.photos.iterdir()
    )
    assert set(catalogue.outputs()) == catalogue.expected(session.job)


def test_a_job_has_one_producer(catalogue: Catalogue, client: Redis) -> None:
    """The second is refused, and told how to follow."""
    session = unfed(catalogue)
    with Lease(client, f"producer:{session.job.id}", "held"), pytest.raises(LeaseHeldError, match=r"status .* --watch"):
        session.feed()
    session.feed()


def test_a_broker_that_comes_back_empty_loses_no_photo(catalogue: Catalogue, client: Redis) -> None:
    """Wiped while the job is being fed, and again while it is followed: what is done stays done, the rest is made."""
    for number in range(300):
        catalogue.add(f"{number:03d}.jpg", "slow:0.01")
    session = unfed(catalogue)
    wiped = []

    def wipe(_: object) -> None:
        if not wiped and session.progress.counts().done > 20:
            client.flushdb()
            wiped.append(time.monotonic())

    session.feed(wipe)
    assert wiped
    wait_until(lambda: session.progress.counts().done > 100)
    client.flushdb()
    assert followed(session) == (300, 300, 0)
    assert set(catalogue.outputs()) == catalogue.expected(session.job)


def test_messages_that_the_broker_loses_are_sent_again(catalogue: Catalogue, client: Redis) -> None:
    """Items that are submitted, not ended and in no queue are found by the one that follows the job."""
    for number in range(60):
        catalogue.add(f"{number}.jpg", "slow:0.05")
    session = unfed(catalogue)
    session.feed()
    assert in_flight(client)[session.job.id]
    client.delete(*STAGES)
    assert followed(session) == (60, 60, 0)


def test_messages_that_the_broker_loses_hold_no_feeding_up(catalogue: Catalogue, client: Redis) -> None:
    """A window full of lost ones would never have room again: the one that feeds the job looks after it, too."""
    catalogue.settings = catalogue.settings.model_copy(update={"window": 10})
    for number in range(60):
        catalogue.add(f"{number}.jpg", "slow:0.05")
    session = unfed(catalogue)
    lost = []

    def lose(counts: Counts) -> None:
        if not lost and counts.sent > 20 and client.llen(STAGES[0]):
            lost.append(client.delete(*STAGES))
        assert time.monotonic() < deadline

    deadline = time.monotonic() + 60
    session.feed(lose)
    assert lost
    assert followed(session) == (60, 60, 0)


def test_rows_of_standard_input_outlast_broker_and_producer(
    catalogue: Catalogue, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there only once, and the job keeps them: after a broker that came back empty, and for whoever resumes."""
    for number in range(300):
        catalogue.add(f"{number:03d}.jpg", "slow:0.01")
    rows = "".join(f"{number:03d}.jpg\n" for number in range(300))
    monkeypatch.setattr(sys, "stdin", io.StringIO(rows))
    source, destination = (open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out))
    job = create_job(source, destination, Recipe(), Selection(manifest="-"))
    session = Session(job, source, destination, catalogue.settings)
    wiped = []

    def wipe(counts: Counts) -> None:
        if not wiped and counts.done > 20:
            wiped.append(client.flushdb())

    session.feed(wipe)
    assert wiped
    assert followed(session) == (300, 300, 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(rows))
    left = create_job(source, destination, Recipe(), Selection(manifest="-"))
    resumed = Session.reopen(left.id, destination.url, catalogue.settings)
    resumed.feed()
    assert followed(resumed) == (300, 300, 0)


def test_a_job_goes_on_with_the_manifest_that_it_was_given(catalogue: Catalogue, tmp_path: Path) -> None:
    """However the file was edited, moved or deleted since, and from any machine: its rows are in the job's records."""
    for number in range(30):
        catalogue.add(f"{number:02d}.jpg", f"photo {number}")
    table = tmp_path / "items.csv"
    table.write_text("key,title\n" + "".join(f"{number:02d}.jpg,Cup {number}\n" for number in range(30)))
    ends = [open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out)]
    selection = Selection(manifest=str(table), exclude=("*5.jpg",))
    session = Session(create_job(*ends, Recipe(), selection), *ends, catalogue.settings)

    photos = list(read_photos(session.destination, session.job.id))
    with session.producing() as submitter:
        submitter.items.append([replace(photo, etag="as it was") for photo in photos[:12]])
    table.unlink()
    resumed = Session.reopen(session.job.id, str(catalogue.out), catalogue.settings)
    resumed.feed()
    items = list(read_items(session.destination, session.job.id))
    expected = [number for number in range(30) if number % 10 != 5]
    assert [(item.key, item.fields["title"]) for item in items] == [(f"{n:02d}.jpg", f"Cup {n}") for n in expected]
    followed(resumed)


def test_a_manifest_that_cannot_be_kept_leaves_no_job(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half of one nor its name in a listing."""
    catalogue.add("a.jpg", "photo")
    (catalogue.photos.parent / "m.csv").write_text("key\na.jpg\n")
    ends = [open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out)]
    put = type(ends[1]).put

    def full(storage: Storage, key: str, data: bytes, **options: Any) -> bool:
        done = put(storage, key, data, **options)  # type: ignore[arg-type] # the same class
        if "/photos/" in key:
            raise StorageError("the disk is full")
        return done

    monkeypatch.setattr(type(ends[1]), "put", full)
    with pytest.raises(StorageError, match="full"):
        create_job(*ends, Recipe(), Selection(manifest=str(catalogue.photos.parent / "m.csv")))
    assert list(ends[1].list("jobs/")) == []


def test_a_producer_that_is_killed_while_it_keeps_a_manifest_leaves_no_job() -> None:
    """What it left is listed as none: nobody could go on with it, and a keeper would look for it for ever."""
    source, destination = MemoryStorage("photos"), MemoryStorage("out")
    before, after = (create_job(source, destination, Recipe()).id for _ in range(2))
    save_photos(destination, min(before, after) + "0", [Photo("a.jpg", "")])
    assert list(list_jobs(destination)) == sorted([before, after])


def test_a_job_of_priority_goes_before_others(catalogue: Catalogue) -> None:
    """It has queues of its own, which workers empty first."""
    for number in range(150):
        catalogue.add(f"{number}.jpg", "slow:0.5")
    slow = unfed(catalogue)
    slow.feed()
    folder = catalogue.photos.parent / "urgent"
    folder.mkdir()
    (folder / "now.jpg").write_text("photo")
    source = open_storage(str(folder), catalogue.settings)
    urgent = Session(
        create_job(source, slow.destination, Recipe(), priority=True), source, slow.destination, catalogue.settings
    )
    urgent.feed()
    assert followed(urgent) == (1, 1, 0)
    assert slow.progress.counts().done < 100  # they take 19 s
    repairs.cancel(slow)
    followed(slow)


def test_a_recipe_never_changes_under_a_job(catalogue: Catalogue) -> None:
    """One that was edited is refused, with what to do instead."""
    catalogue.add("a.jpg", "photo")
    session = unfed(catalogue)
    path = catalogue.out / "jobs" / session.job.id / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe["picture"]["quality"] = 10
    path.write_text(json.dumps(recipe))
    with pytest.raises(JobDamagedError, match="rerun"):
        Session.reopen(session.job.id, str(catalogue.out), catalogue.settings)


def test_an_unknown_job_is_answered_with_the_nearest(catalogue: Catalogue) -> None:
    """A slip of the pen costs a second."""
    session = unfed(catalogue)
    wrong = session.job.id[:-1] + ("0" if session.job.id[-1] != "0" else "1")
    with pytest.raises(JobNotFoundError, match=session.job.id):
        Session.reopen(wrong, str(catalogue.out), catalogue.settings)


def test_a_job_can_be_counted_without_a_broker(catalogue: Catalogue) -> None:
    """From the outputs and the recorded failures alone."""
    for name, text in (("good.jpg", "photo"), ("cut.jpg", "bad"), ("other.jpg", "photo")):
        catalogue.add(name, text)
    session = unfed(catalogue)
    session.feed()
    followed(session)
    live = session.progress.counts()
    session.finish(1.0, None)
    stored = counted(session.job, session.destination)
    assert (stored.items, stored.done, stored.failed) == (live.items, live.done, live.failed) == (3, 2, 1)
    assert stored.listed


def test_the_window_bounds_what_is_queued_of_a_job_that_is_resumed(
    catalogue: Catalogue, app: Celery, client: Redis
) -> None:
    """What an earlier producer queued and is not finished counts as well."""
    session = unfed(catalogue)
    job: Job = session.job
    progress = Progress(client, job.id)
    progress.begin(job.destination)
    progress.sent(10)
    seen: list[int] = []

    class EnoughError(Exception):
        pass

    def tick(_: object) -> None:
        seen.append(len(in_flight(client).get(job.id, ())))
        raise EnoughError

    photos = Selection().photos(session.source, session.destination, job.recipe)
    for number in range(30):
        catalogue.add(f"{number}.jpg", "slow:1")
    with pytest.raises(EnoughError):
        Submitter(app, progress, job, session.destination, window=15, tick=tick).feed(photos)
    assert seen == [5]
    session.progress.set_state("cancelled")


def test_workers_are_named_while_they_are_there(catalogue: Catalogue, workers: Workers, client: Redis) -> None:
    """Status tells how many of each stage are alive."""
    del workers
    from producer.status import Surroundings  # noqa: PLC0415 - used here alone

    progress = Progress(client, unfed(catalogue).job.id)
    wait_until(lambda: set(Surroundings.of(client, progress, catalogue.settings).workers) == set(STAGES))
    assert "workers: 1" in Surroundings.of(client, progress, catalogue.settings).line()
