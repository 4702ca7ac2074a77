"""Whole jobs through a real broker and real worker processes, with instant models."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from made_jobs import Catalogue

from producer import repairs
from producer.manifest import Manifest
from producer.session import Session, create_job
from shared.broker import make_app
from shared.jobs import read_items
from shared.keys import STAGES
from shared.messages import Item
from shared.progress import Progress
from shared.recipe import Recipe
from shared.storage import open_storage

if TYPE_CHECKING:
    from made_jobs import Workers
    from redis import Redis

    from shared.settings import Settings


def test_a_manifest_decides_what_is_taken_and_is_told_to_the_workers(catalogue: Catalogue, tmp_path: Path) -> None:
    """Only its rows are made, a photo that is not there is a failure with its reason, and the item's record holds its fields."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        catalogue.add(name, name)
    table = tmp_path / "items.csv"
    table.write_text("key,id,title\nb.jpg,17,Mug\ngone.jpg,18,\na.jpg,,\n")
    job = catalogue.submit(manifest=Manifest(table))
    summary = catalogue.follow(job)
    assert (summary.items, summary.done, summary.failed) == (3, 2, 1)
    (failure,) = catalogue.failures(job)
    assert (failure.key, failure.reason, failure.stage) == ("gone.jpg", "missing", "listing")
    records = {name: json.loads(data) for name, data in catalogue.outputs().items() if "/caption-" in name}
    assert {name.split("/")[0]: record.get("fields") for name, record in records.items()} == {
        "a.jpg": None,
        "b.jpg": {"id": "17", "title": "Mug"},
    }


def test_every_photo_becomes_its_outputs(catalogue: Catalogue) -> None:
    """One chain per photo through three queues; nothing else is written."""
    for number in range(40):
        catalogue.add(f"shelf {number % 3}/{number}.jpg", f"photo {number}")
    job = catalogue.submit()
    summary = catalogue.follow(job)
    assert (summary.items, summary.done, summary.failed, summary.skipped) == (40, 40, 0, 0)
    assert set(catalogue.outputs()) == catalogue.expected(job)


def test_running_the_job_again_runs_nothing(catalogue: Catalogue) -> None:
    """What exists is skipped, and says so."""
    for number in range(10):
        catalogue.add(f"{number}.jpg", f"photo {number}")
    catalogue.follow(catalogue.submit())
    before = {p: p.stat().st_mtime_ns for p in catalogue.out.rglob("*.png")}
    summary = catalogue.follow(catalogue.submit())
    assert (summary.done, summary.skipped) == (10, 10)
    assert {p: p.stat().st_mtime_ns for p in catalogue.out.rglob("*.png")} == before


def test_changing_the_background_alone_keeps_the_masks(catalogue: Catalogue) -> None:
    """Segmentation is not run again for a new background."""
    catalogue.add("a.jpg", "photo")
    catalogue.follow(catalogue.submit())
    masks = {p: p.stat().st_mtime_ns for p in catalogue.out.rglob("mask-*.png")}
    white = Recipe.from_mapping({"background": {"model": "color"}})
    summary = catalogue.follow(catalogue.submit(white))
    assert (summary.done, summary.skipped) == (1, 0)
    assert {p: p.stat().st_mtime_ns for p in catalogue.out.rglob("mask-*.png")} == masks
    assert len(list(catalogue.out.rglob("image-*.jpg"))) == 2


def test_bad_photos_are_recorded_and_the_others_finish(catalogue: Catalogue) -> None:
    """A broken picture, a bug in a stage and a refused name each become a row with a reason; nothing stops."""
    for number in range(20):
        catalogue.add(f"{number}.jpg", f"photo {number}")
    catalogue.add("broken.jpg", "bad")
    catalogue.add("unlucky.jpg", "bug")
    catalogue.add("line\nbreak.jpg", "photo")
    job = catalogue.submit()
    summary = catalogue.follow(job)
    assert (summary.items, summary.done, summary.failed) == (23, 20, 3)
    failures = {f.key: f.reason for f in catalogue.failures(job)}
    assert failures == {"broken.jpg": "unreadable", "unlucky.jpg": "stage_error", "line\nbreak.jpg": "bad_key"}


def test_what_may_heal_is_tried_as_often_as_set_and_then_recorded(catalogue: Catalogue) -> None:
    """Storage and memory faults are retried with backoff; the last try leaves a failure, never silence."""
    catalogue.add("away.jpg", "outage")
    catalogue.add("large.jpg", "memory")
    catalogue.add("fine.jpg", "photo")
    job = catalogue.submit()
    assert catalogue.follow(job).done == 1
    failures = {f.key: f.reason for f in catalogue.failures(job)}
    assert failures == {"away.jpg": "storage", "large.jpg": "out_of_memory"}


def test_a_job_whose_storage_is_gone_does_not_hold_up_others(catalogue: Catalogue, tmp_path: Path) -> None:
    """Its photos are put off, however many there are; once it is cancelled they end."""
    for number in range(20):
        catalogue.add(f"{number}.jpg", "outage")
    gone = catalogue.submit()
    (tmp_path / "other").mkdir()
    other = Catalogue(tmp_path / "other", catalogue.settings, catalogue.app, catalogue.client)
    for number in range(5):
        other.add(f"{number}.jpg", "photo")
    assert other.follow(other.submit(), 30).done == 5
    counts = catalogue.progress(gone).counts()
    assert (counts.done, counts.failed) == (0, 0)
    repairs.cancel(Session.reopen(gone.id, None, catalogue.settings))
    assert catalogue.follow(gone).failed == 20


def test_a_job_whose_record_is_out_of_reach_fails_its_items_with_the_reason(catalogue: Catalogue) -> None:
    """A worker on a machine without the folder says so, rather than leave the producer waiting for ever."""
    catalogue.add("a.jpg", "photo")
    job = catalogue.submit()
    catalogue.follow(job)
    elsewhere = Progress(catalogue.client, "20260101-000000-abcdef")
    elsewhere.begin(str(catalogue.out / "nowhere"))
    elsewhere.listed(1, complete=True)
    item = Item("20260101-000000-abcdef", 0, "a.jpg", "etag").to_wire()
    catalogue.app.signature(STAGES[0], args=(item,)).apply_async()
    deadline = time.monotonic() + 30
    while not elsewhere.counts().finished:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [f.reason for f in elsewhere.failures_of([0]).values()] == ["unknown_job"]


def test_redelivering_a_finished_item_changes_nothing(catalogue: Catalogue) -> None:
    """Brokers deliver at least once; the second time finds the work done."""
    catalogue.add("a.jpg", "photo")
    job = catalogue.submit()
    before = catalogue.follow(job)
    outputs = catalogue.outputs()
    item = next(iter(read_items(open_storage(str(catalogue.out), catalogue.settings), job.id)))
    for stage in STAGES:
        catalogue.app.signature(stage, args=(item.to_wire(),)).apply_async()
    catalogue.settle()
    assert catalogue.follow(job) == before
    assert catalogue.outputs() == outputs


def test_a_changed_photo_is_not_taken_for_the_listed_one(catalogue: Catalogue, client: Redis) -> None:
    """Its outputs would bear the name of another picture."""
    catalogue.add("a.jpg", "photo")
    source = open_storage(str(catalogue.photos), catalogue.settings)
    destination = open_storage(str(catalogue.out), catalogue.settings)
    job = create_job(source, destination, Recipe())
    progress = Progress(client, job.id)
    progress.begin(job.destination)
    progress.listed(1, complete=True)
    message = Item(job.id, 0, "a.jpg", "an older etag").to_wire()
    catalogue.app.signature("segmentation", args=(message,)).apply_async()
    assert catalogue.follow(job).failed == 1
    assert [f.reason for f in catalogue.failures(job)] == ["source_changed"]


def test_a_worker_killed_mid_job_loses_and_doubles_nothing(catalogue: Catalogue, workers: Workers) -> None:
    """SIGKILL: its messages go to another worker, every output is there once, the counts are right."""
    for number in range(60):
        catalogue.add(f"{number}.jpg", f"slow:0.{number % 9 + 1}")
    workers.start("victim", ",".join(STAGES))
    job = catalogue.submit()
    while not workers.works("victim", catalogue.app):
        assert not catalogue.progress(job).counts().finished
    victim = workers.processes.pop("victim")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    summary = catalogue.follow(job)
    assert (summary.items, summary.done, summary.failed) == (60, 60, 0)
    assert set(catalogue.outputs()) == catalogue.expected(job)


def test_messages_are_small(catalogue: Catalogue, settings: Settings, client: Redis) -> None:
    """A chain is keys and numbers: about 2 KB, never pixels."""
    job = "20260101-000000-abcdef"
    celery = make_app(settings.model_copy(update={"broker": settings.broker}))
    message = Item(job, 0, "k" * 100, "e" * 32).to_wire()
    tail = [celery.signature(s, args=(message,), immutable=True) for s in STAGES[:0:-1]]
    body = celery.signature(STAGES[0], args=(message,))
    assert len(json.dumps([body, tail])) < 3000
    celery.close()


def test_the_worker_holds_no_child_processes(workers: Workers, catalogue: Catalogue) -> None:
    """One process per worker, threads around one batcher."""
    del catalogue
    assert all(not psutil.Process(p.pid).children() for p in workers.processes.values() if p.poll() is None)
