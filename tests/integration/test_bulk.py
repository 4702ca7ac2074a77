"""What a catalogue team does with a job that exists, through a real broker and real workers with instant models."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from made_jobs import ROOT, Catalogue, Workers, unfed, wait_until

from producer import repairs
from producer.rebuild import counted
from producer.selection import Selection
from producer.session import Session, create_job
from producer.submit import Submitter
from shared.errors import JobDamagedError, JobNotFoundError, LeaseHeldError, RecipeError, StorageError, UsageError
from shared.jobs import load_summary, read_items
from shared.keys import STAGES
from shared.lease import Lease
from shared.progress import Progress
from shared.queues import in_flight
from shared.recipe import Recipe
from shared.storage import open_storage
from shared.storage.local import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery
    from redis import Redis

    from shared.jobs import Job
    from shared.progress import Counts


def follow(session: Session, seconds: float = 120) -> tuple[int, int, int]:
    """Follow a job to its end and return how many items it has, and how many are done and failed."""
    deadline = time.monotonic() + seconds

    def check(counts: object) -> None:
        assert time.monotonic() < deadline, f"not finished in {seconds} s: {counts}"

    counts = session.follow(check)
    return counts.items, counts.done, counts.failed


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
    assert follow(session) == (800, 800, 0)
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
    assert follow(session) == (300, 300, 0)
    assert set(catalogue.outputs()) == catalogue.expected(session.job)


def test_messages_that_the_broker_loses_are_sent_again(catalogue: Catalogue, client: Redis) -> None:
    """Items that are submitted, not ended and in no queue are found by the one that follows the job."""
    for number in range(60):
        catalogue.add(f"{number}.jpg", "slow:0.05")
    session = unfed(catalogue)
    session.feed()
    assert in_flight(client)[session.job.id]
    client.delete(*STAGES)
    assert follow(session) == (60, 60, 0)


def test_failed_items_run_again_and_no_others(catalogue: Catalogue) -> None:
    """By reason and stage; a photo that was replaced is taken as it is now; the summary is written anew."""
    for name, text in (("good.jpg", "photo"), ("cut.jpg", "bad"), ("bug.jpg", "bug")):
        catalogue.add(name, text)
    session = unfed(catalogue)
    session.feed()
    assert follow(session) == (3, 1, 2)
    session.finish(1.0, None)
    catalogue.add("cut.jpg", "a whole photo")
    with pytest.raises(UsageError, match=r"'unreadible': choose .*unreadable"):
        repairs.retry(session, reason="unreadible")
    assert load_summary(session.destination, session.job.id) is not None
    assert repairs.retry(session, reason="unreadable") == 1
    assert load_summary(session.destination, session.job.id) is None
    assert follow(session) == (3, 2, 1)
    assert session.progress.reasons() == {"stage_error": 1}
    catalogue.add("bug.jpg", "mended")
    assert repairs.retry(session, stage="segmentation") == 1
    assert follow(session) == (3, 3, 0)
    assert set(catalogue.outputs()) == catalogue.expected(session.job)


def test_items_to_review_run_again_from_where_the_doubt_arose(catalogue: Catalogue) -> None:
    """Their outputs are made anew from that stage on, and the others stay."""
    for name, text in (("sure.jpg", "photo"), ("unsure.jpg", "doubt:inpainting")):
        catalogue.add(name, text)
    session = unfed(catalogue)
    session.feed()
    follow(session)
    assert session.progress.counts().needs_review == 1
    before = {path: path.stat().st_mtime_ns for path in catalogue.out.rglob("*-*.*") if "jobs" not in path.parts}
    assert repairs.retry(session, review=True, reason="another") == 0
    assert repairs.retry(session, review=True) == 1
    assert follow(session) == (2, 2, 0)
    changed = {path.name.partition("-")[0] for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert {name for name in changed if not name.startswith(".")} == {"image", "caption"}
    assert session.progress.counts().needs_review == 1


def test_a_cancelled_job_drops_its_queue_and_can_be_taken_up_again(catalogue: Catalogue) -> None:
    """What runs finishes, what waits is recorded as cancelled at once, and retry makes it after all."""
    for number in range(200):
        catalogue.add(f"{number}.jpg", "slow:0.1")
    session = unfed(catalogue)
    session.feed()
    wait_until(lambda: session.progress.counts().done > 3)
    repairs.cancel(session)
    begun = session.progress.counts().stages["segmentation"]
    items, done, failed = follow(session)
    assert items == done + failed == 200
    assert done <= begun + 8  # of what waited, nothing was begun
    assert session.progress.reasons() == {"cancelled": failed}
    with pytest.raises(UsageError, match="has ended"):
        repairs.cancel(session)
    for path in catalogue.photos.iterdir():
        path.write_text("quick now")
    assert repairs.retry(session, reason="cancelled") == failed
    assert follow(session) == (200, 200, 0)


def test_a_job_is_cancelled_while_it_is_fed(catalogue: Catalogue) -> None:
    """The producer stops listing; what it had listed and not queued ends as cancelled too."""
    for number in range(1200):
        catalogue.add(f"{number:04d}.jpg", "slow:0.02")
    session = unfed(catalogue)
    feeding = threading.Thread(target=session.feed)
    feeding.start()
    wait_until(lambda: session.progress.counts().done > 3)
    repairs.cancel(session)
    feeding.join(30)
    assert not feeding.is_alive()
    items, done, failed = follow(session)
    assert items == done + failed
    assert items <= 1000  # one page was listed


def test_a_paused_job_waits(catalogue: Catalogue) -> None:
    """Nothing more is queued until resume, which says whether a producer is there."""
    for number in range(600):
        catalogue.add(f"{number:03d}.jpg", "slow:0.01")
    session = unfed(catalogue)
    feeding = threading.Thread(target=session.feed)
    feeding.start()
    wait_until(lambda: session.progress.counts().done > 3)
    repairs.pause(session)
    wait_until(lambda: session.job.id not in in_flight(session.client))
    done = session.progress.counts().done
    assert done < 600
    time.sleep(1)
    assert session.progress.counts().done == done
    assert repairs.resume(session)
    feeding.join(60)
    assert follow(session) == (600, 600, 0)


def test_another_recipe_remakes_a_job_from_a_stage_on(catalogue: Catalogue) -> None:
    """The same items, new backgrounds, the old masks; what the new recipe says of earlier stages is not used."""
    catalogue.add("a.jpg", "photo")
    old = unfed(catalogue)
    old.feed()
    follow(old)
    catalogue.add("later.jpg", "photo")
    masks = {path: path.stat().st_mtime_ns for path in catalogue.out.rglob("mask-*.png")}
    white = {"segmentation": {"model": "none"}, "background": {"model": "color"}}
    new = repairs.rerun(old, "inpainting", Recipe.from_mapping(white))
    new.feed()
    assert follow(new) == (1, 1, 0)
    assert {path: path.stat().st_mtime_ns for path in catalogue.out.rglob("mask-*.png")} == masks
    assert len(list(catalogue.out.rglob("image-*.jpg"))) == 2


def test_a_job_that_is_remade_keeps_what_a_manifest_said_and_what_its_recipe_said(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """The fields of each photo, and the sections that the new recipe leaves out; what then does not go together is refused."""
    catalogue.add("a.jpg", "photo")
    (tmp_path / "m.csv").write_text("key,seed,title\na.jpg,7,A cup\n")
    source, destination = (open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out))
    recipe = Recipe.from_mapping({"background": {"model": "transparent"}, "picture": {"format": "png"}})
    selection = Selection(manifest=str(tmp_path / "m.csv"))
    old = Session(create_job(source, destination, recipe, selection), source, destination, catalogue.settings)
    old.feed()
    follow(old)
    new = repairs.rerun(old, "inpainting", Recipe.from_mapping({"background": {"model": "color"}}))
    new.feed()
    assert follow(new) == (1, 1, 0)
    assert new.job.fields
    assert [dict(item.fields) for item in read_items(destination, new.job.id)] == [{"seed": 7, "title": "A cup"}]
    assert (new.job.recipe.background.model, new.job.recipe.picture.format) == ("color", "png")
    with pytest.raises(RecipeError, match="transparent"):
        repairs.rerun(old, "inpainting", Recipe.from_mapping({"picture": {"format": "jpeg"}}))


def test_rows_of_standard_input_outlast_a_broker_that_comes_back_empty(
    catalogue: Catalogue, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there only once: nobody else can go on with them, and says what to do instead."""
    for number in range(300):
        catalogue.add(f"{number:03d}.jpg", "slow:0.01")
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{number:03d}.jpg\n" for number in range(300))))
    source, destination = (open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out))
    job = create_job(source, destination, Recipe(), Selection(manifest="-"))
    session = Session(job, source, destination, catalogue.settings)
    wiped = []

    def wipe(counts: Counts) -> None:
        if not wiped and counts.done > 20:
            wiped.append(client.flushdb())

    session.feed(wipe)
    assert wiped
    assert follow(session) == (300, 300, 0)
    other = create_job(source, destination, Recipe(), Selection(manifest="-"))
    with pytest.raises(UsageError, match=rf"vitrina cancel {other.id}.*--manifest FILE"):
        Session.reopen(other.id, destination.url, catalogue.settings).feed()


def test_purging_a_job_leaves_what_others_made(catalogue: Catalogue) -> None:
    """Its own outputs and records go; a mask that an earlier job made stays, and so do the photos."""
    catalogue.add("a.jpg", "photo")
    old = unfed(catalogue)
    old.feed()
    follow(old)
    outputs = set(catalogue.outputs())
    new = repairs.rerun(old, "inpainting", Recipe.from_mapping({"background": {"model": "color"}}))
    new.feed()
    follow(new)
    assert repairs.purge(new) == 2
    assert set(catalogue.outputs()) == outputs
    assert not (catalogue.out / "jobs" / new.job.id).exists()
    with pytest.raises(JobNotFoundError):
        Session.reopen(new.job.id, None, catalogue.settings)
    assert (catalogue.photos / "a.jpg").exists()


def test_a_purge_that_was_cut_short_is_finished_by_the_next(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever record the storage refused to delete, the job can still be opened, until nothing of it is left."""
    catalogue.add("a.jpg", "photo")
    session = unfed(catalogue)
    session.feed()
    follow(session)
    session.finish(1.0, None)
    delete = LocalStorage.delete
    for refused in ("items/", "job.json"):

        def fail(storage: LocalStorage, key: str, refused: str = refused) -> None:
            if refused in key:
                raise StorageError(f"{key}: busy")
            delete(storage, key)

        again = Session.reopen(session.job.id, None, catalogue.settings)
        with monkeypatch.context() as faulty:
            faulty.setattr(LocalStorage, "delete", fail)
            with pytest.raises(StorageError, match="busy"):
                repairs.purge(again)
    repairs.purge(Session.reopen(session.job.id, None, catalogue.settings))
    assert not (catalogue.out / "jobs" / session.job.id).exists()


def test_a_job_that_goes_on_is_not_purged(catalogue: Catalogue) -> None:
    """It would be made again behind our back."""
    session = unfed(catalogue)
    session.progress.begin(session.job.destination)
    with pytest.raises(UsageError, match="cancel"):
        repairs.purge(session)


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
    assert follow(urgent) == (1, 1, 0)
    assert slow.progress.counts().done < 100  # they take 19 s
    repairs.cancel(slow)
    follow(slow)


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
    follow(session)
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
