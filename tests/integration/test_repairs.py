"""What an operator does to a job that exists, through a real broker and real workers with instant models."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from made_jobs import Catalogue, followed, unfed, wait_until

from producer import repairs
from producer.selection import Selection
from producer.session import Session, create_job
from shared.errors import JobNotFoundError, RecipeError, StorageError, UsageError
from shared.jobs import list_jobs, load_summary, read_items
from shared.queues import in_flight
from shared.recipe import Recipe
from shared.storage import open_storage
from shared.storage.local import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path


def test_failed_items_run_again_and_no_others(catalogue: Catalogue) -> None:
    """By reason and stage; a photo that was replaced is taken as it is now; the summary is written anew."""
    for name, text in (("good.jpg", "photo"), ("cut.jpg", "bad"), ("bug.jpg", "bug")):
        catalogue.add(name, text)
    session = unfed(catalogue)
    session.feed()
    assert followed(session) == (3, 1, 2)
    session.finish(1.0, None)
    catalogue.add("cut.jpg", "a whole photo")
    with pytest.raises(UsageError, match=r"'unreadible': choose .*unreadable"):
        repairs.retry(session, reason="unreadible")
    assert load_summary(session.destination, session.job.id) is not None
    assert repairs.retry(session, reason="unreadable") == 1
    assert load_summary(session.destination, session.job.id) is None
    assert followed(session) == (3, 2, 1)
    assert session.progress.reasons() == {"stage_error": 1}
    catalogue.add("bug.jpg", "mended")
    assert repairs.retry(session, stage="segmentation") == 1
    assert followed(session) == (3, 3, 0)
    assert set(catalogue.outputs()) == catalogue.expected(session.job)


def test_items_to_review_run_again_from_where_the_doubt_arose(catalogue: Catalogue) -> None:
    """Their outputs are made anew from that stage on, and the others stay."""
    for name, text in (("sure.jpg", "photo"), ("unsure.jpg", "doubt:inpainting")):
        catalogue.add(name, text)
    session = unfed(catalogue)
    session.feed()
    followed(session)
    assert session.progress.counts().needs_review == 1
    before = {path: path.stat().st_mtime_ns for path in catalogue.out.rglob("*-*.*") if "jobs" not in path.parts}
    assert repairs.retry(session, review=True, reason="another") == 0
    assert repairs.retry(session, review=True) == 1
    assert followed(session) == (2, 2, 0)
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
    items, done, failed = followed(session)
    assert items == done + failed == 200
    assert done <= begun + 8  # of what waited, nothing was begun
    assert session.progress.reasons() == {"cancelled": failed}
    with pytest.raises(UsageError, match="has ended"):
        repairs.cancel(session)
    for path in catalogue.photos.iterdir():
        path.write_text("quick now")
    assert repairs.retry(session, reason="cancelled") == failed
    assert followed(session) == (200, 200, 0)


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
    items, done, failed = followed(session)
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
    assert followed(session) == (600, 600, 0)


def test_another_recipe_remakes_a_job_from_a_stage_on(catalogue: Catalogue) -> None:
    """The same items, new backgrounds, the old masks; what the new recipe says of earlier stages is not used."""
    catalogue.add("a.jpg", "photo")
    old = unfed(catalogue)
    old.feed()
    followed(old)
    catalogue.add("later.jpg", "photo")
    masks = {path: path.stat().st_mtime_ns for path in catalogue.out.rglob("mask-*.png")}
    white = {"segmentation": {"model": "none"}, "background": {"model": "color"}}
    new = repairs.rerun(old, "inpainting", Recipe.from_mapping(white))
    new.feed()
    assert followed(new) == (1, 1, 0)
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
    followed(old)
    new = repairs.rerun(old, "inpainting", Recipe.from_mapping({"background": {"model": "color"}}))
    new.feed()
    assert followed(new) == (1, 1, 0)
    assert new.job.fields
    assert [dict(item.fields) for item in read_items(destination, new.job.id)] == [{"seed": 7, "title": "A cup"}]
    assert (new.job.recipe.background.model, new.job.recipe.picture.format) == ("color", "png")
    with pytest.raises(RecipeError, match="transparent"):
        repairs.rerun(old, "inpainting", Recipe.from_mapping({"picture": {"format": "jpeg"}}))


def test_a_job_that_is_not_all_listed_is_not_remade_unless_asked(catalogue: Catalogue) -> None:
    """A part of a catalogue would pass for all of it; neither is a watch, which is never all listed."""
    for number in range(2):
        catalogue.add(f"{number}.jpg", "photo")
    session = unfed(catalogue)
    session.feed()
    followed(session)
    session.destination.delete(f"jobs/{session.job.id}/listed.json")  # as a producer leaves it that dies before the end
    white = Recipe.from_mapping({"background": {"model": "color"}})
    with pytest.raises(UsageError, match=rf"not all photos .* `vitrina submit --resume {session.job.id}` first"):
        repairs.rerun(session, "inpainting", white)
    session.job.selection["watch"] = True  # type: ignore[index] # a dictionary
    with pytest.raises(UsageError, match="it is watched, and stays open"):
        repairs.rerun(session, "inpainting", white)
    assert list(list_jobs(session.destination)) == [session.job.id]
    part = repairs.rerun(session, "inpainting", white, incomplete=True)
    part.feed()
    assert followed(part) == (2, 2, 0)


def test_purging_a_job_leaves_what_others_made(catalogue: Catalogue) -> None:
    """Its own outputs and records go; a mask that an earlier job made stays, and so do the photos."""
    catalogue.add("a.jpg", "photo")
    old = unfed(catalogue)
    old.feed()
    followed(old)
    outputs = set(catalogue.outputs())
    new = repairs.rerun(old, "inpainting", Recipe.from_mapping({"background": {"model": "color"}}))
    new.feed()
    followed(new)
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
    followed(session)
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
