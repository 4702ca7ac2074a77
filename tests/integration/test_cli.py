"""The command line as a user meets it: a folder in, a catalogue out; and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from made_commands import ROOT, VITRINA, draw_mug, last_line, vitrina, vitrina_here
from PIL import Image, ImageDraw

from producer.embedded import free_port
from producer.inputs import load_recipe
from producer.session import Session
from shared.errors import RecipeError
from shared.recipe import ImageBackground
from shared.settings import Settings
from shared.storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from made_jobs import Catalogue

    from shared.progress import Counts

GOOD = {"mug.jpg", "mug.png", "shelf/mug.jpg", "naïve «кружка» 'x'.png", "wide.png", "really a png.jpg"}
BAD = {
    "empty.jpg": "unreadable",
    "cut short.jpg": "unreadable",
    "not a picture.jpg": "unsupported",
    "notes.txt": "unsupported",
    "one pixel.png": "too_small",
    "bomb.png": "too_large",
    "line\nbreak.png": "bad_key",
    "grey wall.png": "no_product",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    photos = folder / "photos"
    for name in GOOD - {"wide.png"}:
        draw_mug(photos / name)
    draw_mug(photos / "wide.png", (6000, 200))
    whole = (photos / "mug.jpg").read_bytes()
    (photos / "empty.jpg").touch()
    (photos / "cut short.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "not a picture.jpg").write_bytes(b"MZ" + os.urandom(500))
    (photos / "notes.txt").write_text("call the studio")
    Image.new("RGB", (1, 1)).save(photos / "one pixel.png")
    Image.new("1", (30_000, 30_000)).save(photos / "bomb.png")
    draw_mug(photos / "line\nbreak.png")
    Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).save(photos / "grey wall.png")
    return folder


@pytest.fixture(scope="module")
def first(shop: Path, models: None) -> subprocess.CompletedProcess[str]:
    del models
    return vitrina(
        "run", str(shop / "photos"), "--out", str(shop / "out"), "--report", str(shop / "report.html"), "--json"
    )


def test_bad_photos_fail_with_their_reason_and_the_others_finish(
    first: subprocess.CompletedProcess[str], shop: Path
) -> None:
    """Every file is accounted for; the exit status says that some failed."""
    summary = last_line(first)
    assert first.returncode == 1, first.stderr
    assert (summary["items"], summary["done"], summary["failed"]) == (len(GOOD) + len(BAD), len(GOOD), len(BAD))
    assert set(summary) == {
        "job",
        "items",
        "done",
        "needs_review",
        "failed",
        "skipped",
        "seconds",
        "images_per_second",
        "report",
    }
    for name in GOOD:
        kinds = {path.name.split("-")[0] for path in (shop / "out" / name).iterdir() if not path.name.startswith(".")}
        assert kinds == {"mask", "cutout", "image", "caption"}
    assert "Traceback" not in first.stderr


def test_the_report_names_every_failure(first: subprocess.CompletedProcess[str], shop: Path) -> None:
    """One file with all of it."""
    assert first.stdout
    page = (shop / "report.html").read_text()
    for reason in set(BAD.values()):
        assert reason in page
    assert "notes.txt" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_record_of_an_item_tells_everything_that_led_to_it(
    first: subprocess.CompletedProcess[str], shop: Path
) -> None:
    """Captions, outcome, models, seed, timings and measures."""
    assert first.stdout
    record = json.loads(next((shop / "out" / "mug.jpg").glob("caption-*.json")).read_text())
    assert set(record["captions"]) == {"en", "ru"}
    assert set(record["stages"]) == {"segmentation", "inpainting", "captioning"}
    assert record["stages"]["inpainting"]["measures"]["preserved_max_difference"] == 0
    assert record["recipe"]["background"]["model"] == "studio"


def test_a_job_can_be_told_and_reported_when_its_services_have_gone(
    first: subprocess.CompletedProcess[str], shop: Path, tmp_path: Path
) -> None:
    """What `run` started ended with it; the records are enough."""
    job = last_line(first)["job"]
    told = vitrina("status", job, "--out", str(shop / "out"))
    assert (told.returncode, f"{len(GOOD)} of {len(GOOD) + len(BAD)} done" in told.stdout) == (1, True), told.stderr
    report = vitrina("report", job, "--out", str(shop / "out"), "--to", str(tmp_path / "again.html"))
    assert report.returncode == 0, report.stderr
    assert "mug.jpg" in (tmp_path / "again.html").read_text()


def test_running_again_skips_what_is_done(first: subprocess.CompletedProcess[str], shop: Path) -> None:
    """Only what failed before is tried again."""
    assert first.stdout
    again = last_line(vitrina("run", str(shop / "photos"), "--out", str(shop / "out"), "--json"))
    assert (again["done"], again["skipped"], again["failed"]) == (len(GOOD), len(GOOD), len(BAD))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_cleanly_and_says_how_to_go_on(
    tmp_path: Path, models: None, number: signal.Signals
) -> None:
    """Status 130, no traceback, no process and no file of its services left."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "photos").mkdir()
    draw_mug(tmp_path / "photos" / "mug.jpg", (2000, 1500))
    for copy in range(200):  # more than can be done before it is interrupted
        shutil.copy(tmp_path / "photos" / "mug.jpg", tmp_path / "photos" / f"{copy}.jpg")
    command = [*VITRINA, "run", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    while not list((tmp_path / "out").glob("*/mask-*.png")):
        assert run.poll() is None
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert "interrupted; run the same command again: what is finished is skipped" in said
    assert list((tmp_path / "tmp").glob("vitrina-*")) == []
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "{tmp}/nowhere", "--out", "{tmp}/out"], 2, ["nowhere", "folder"]),
        (["run", "{tmp}/photos"], 2, ["--out"]),
        (["run", "{tmp}/photos", "--out", "{tmp}/photos"], 2, ["--out"]),
        (["run", "{tmp}/photos", "--out", "{tmp}/file"], 1, ["file", "check the path"]),
        (
            ["run", "{tmp}/photos", "--out", "{tmp}/out", "--recipe", "{tmp}/bad.yaml"],
            2,
            ["background.model", "studio"],
        ),
        (["run", "{tmp}/photos", "--out", "{tmp}/out", "--recipe", "{tmp}/none.yaml"], 2, ["none.yaml", "production"]),
        (
            ["run", "{tmp}/photos", "--out", "{tmp}/out", "--broker", "redis://127.0.0.1:{port}/0"],
            1,
            ["broker", "--broker"],
        ),
        (["run", "{tmp}/photos", "--out", "ftp://x/y"], 2, ["s3://"]),
        (["run", "{tmp}/photos", "--out", "s3:/shop/catalogue"], 2, ["did you mean s3://shop/catalogue?"]),
        (
            ["run", "s3://bucket/x", "--out", "{tmp}/out", "--endpoint-url", "http://127.0.0.1:{port}"],
            1,
            ["endpoint-url"],
        ),
        (["worker", "painting"], 2, ["segmentation"]),
        (["status", "no-such-job", "--out", "{tmp}/out"], 2, ["no-such-job"]),
        (["models", "fetch", "gpt"], 2, ["gpt", "models list"]),
        (["status", "no-such-job", "--broker", "foo://:secret@x"], 2, ["not a broker address", "redis://"]),
        (["worker", "captioning", "--broker", "redis://:secret/x@host/0"], 2, ["not a broker address", "encoded"]),
        (["demo", "{tmp}/photos", "--to", "{tmp}/file"], 1, ["file", "check the path"]),
        (["frobnicate"], 2, ["frobnicate"]),
        (
            ["run", "~nobody-of-that-name/x", "--out", "{tmp}/out"],
            2,
            ["~nobody-of-that-name", "write the path in full"],
        ),
        (
            ["run", "{tmp}/photos", "--out", "{tmp}/out", "--window", "-5"],
            2,
            ["--window", "greater than or equal to 1"],
        ),
        (["run", "{tmp}/photos", "--out", "{tmp}/out", "--recipe", "{tmp}/empty.yaml"], 2, ["empty.yaml is empty"]),
        (["run", "{tmp}/photos", "--out", "{tmp}/out", "--recipe", "{tmp}/nul.yaml"], 2, ["background.image"]),
        (["jobs", "--broker", "redis://127.0.0.1:{port}/0?foo=1"], 2, ["not a broker address"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_cannot_work_is_one_clear_line(
    tmp_path: Path, arguments: Sequence[str], status: int, words: Sequence[str]
) -> None:
    """No traceback; the line says what to do."""
    draw_mug(tmp_path / "photos" / "mug.jpg")
    (tmp_path / "file").touch()
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "nul.yaml").write_text('background: {model: image, image: "a\\0.png"}\n')
    (tmp_path / "bad.yaml").write_text("background: {model: lava}\n")
    port = str(free_port())
    filled = [a.replace("{tmp}", str(tmp_path)).replace("{port}", port) for a in arguments]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "VITRINA_S3_ATTEMPTS": "1"}
    done = vitrina(*filled, timeout=60, env=keys)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("place", ["{tmp}/photos", "{tmp}/file/report.html", "/dev/null"])
def test_a_report_that_cannot_be_written_is_told_before_there_is_a_job(tmp_path: Path, place: str) -> None:
    """A folder, a place below a file, a device: nothing is begun, and the device stays one."""
    draw_mug(tmp_path / "photos" / "mug.jpg")
    (tmp_path / "file").touch()
    report = place.replace("{tmp}", str(tmp_path))
    done = vitrina("run", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--report", report)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vitrina: cannot write the report to {report}")
    assert done.stderr.endswith("give --report another place\n")
    assert not (tmp_path / "out").exists()
    assert not Path("/dev/null").is_file()


def test_a_report_that_is_lost_costs_the_job_nothing(
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its place goes while the job runs: the outcome is told and kept all the same, and the status says that something is missing."""
    catalogue.add("mug.jpg", "a mug")
    report = tmp_path / "report.html"
    follow = Session.follow

    def followed(session: Session, tick: Callable[[Counts], None]) -> Counts:
        report.mkdir()
        return follow(session, tick)

    monkeypatch.setattr(Session, "follow", followed)
    broker = catalogue.settings.broker.get_secret_value()
    run = ["run", str(catalogue.photos), "--out", str(catalogue.out), "--broker", broker, "--json"]
    status = vitrina_here(monkeypatch, *run, "--report", str(report))
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert (status, summary["done"], summary["failed"], summary["report"]) == (1, 1, 0, None)
    assert f"no report: cannot write the report to {report}" in said.err
    assert f"`vitrina report {summary['job']} --out {catalogue.out} --to FILE` writes it" in said.err
    kept = json.loads((catalogue.out / "jobs" / summary["job"] / "summary.json").read_text())
    assert kept == summary
    report.rmdir()
    assert vitrina_here(monkeypatch, "report", summary["job"], "--to", str(report), "--broker", broker) == 0
    assert "mug.jpg" in report.read_text()


def test_a_setting_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    """It may be of another alphabet's old encoding."""
    (tmp_path / "vitrina.env").write_bytes("VITRINA_DEVICE=cpu # процессор\n".encode("cp1251"))
    done = vitrina("jobs", "--out", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "vitrina.env is not text" in done.stderr


def test_a_service_that_fails_leaves_its_log(tmp_path: Path) -> None:
    """The message names a file that is still there."""
    draw_mug(tmp_path / "photos" / "mug.jpg")
    run = ["run", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    done = vitrina(*run, env={"TMPDIR": str(tmp_path), "VITRINA_PRELOAD": "/nowhere/recipe.yaml"})
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (log,) = re.findall(r"its log (\S+) ends:", done.stderr)
    assert "/nowhere/recipe.yaml" in Path(log).read_text()


def test_nothing_is_left_of_services_that_did_their_work(tmp_path: Path) -> None:
    """An empty folder of photos is a job as well, though one that ends with 1."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "tmp").mkdir()
    run = ["run", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--json"]
    done = vitrina(*run, env={"TMPDIR": str(tmp_path / "tmp")})
    assert (done.returncode, last_line(done)["items"]) == (1, 0), done.stderr
    assert list((tmp_path / "tmp").glob("vitrina-*")) == []


def test_a_background_is_the_recipes_neighbour_or_what_an_earlier_job_brought(tmp_path: Path) -> None:
    """Whatever it is called; and it is kept under the name of its content."""
    destination = MemoryStorage()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("background: {model: image, image: backgrounds/wood.png}\n")
    with pytest.raises(RecipeError, match=r"neither a file .*backgrounds/wood\.png nor backgrounds/wood\.png"):
        load_recipe(recipe, destination, Settings())
    keys = []
    for size, where in ((30, destination), (40, tmp_path), (50, tmp_path)):
        file = tmp_path / "backgrounds" / "wood.png" if where is tmp_path else tmp_path / "brought.png"
        draw_mug(file, (size, size))
        if where is destination:
            destination.put("backgrounds/wood.png", file.read_bytes())
        background = load_recipe(recipe, destination, Settings()).background
        assert isinstance(background, ImageBackground)
        assert destination.get(background.image).data == file.read_bytes()
        keys.append(background.image)
    assert len(set(keys)) == 3
    recipe.write_text("background: {model: image, image: nowhere.png}\n")
    with pytest.raises(RecipeError, match=r"no file .*nowhere\.png"):
        load_recipe(recipe, destination, Settings())


def test_a_corrected_mask_makes_the_item_anew(tmp_path: Path) -> None:
    """Masks that lie beside the photos are told apart by what is in them; a photo without one says so."""
    photos, masks = tmp_path / "photos", tmp_path / "photos" / "masks"
    draw_mug(photos / "mug.jpg")
    draw_mug(photos / "bare.jpg")
    masks.mkdir()
    recipe, table = tmp_path / "recipe.yaml", tmp_path / "items.csv"
    recipe.write_text(
        "segmentation: {model: none, mask: supplied, mask_key: 'masks/{stem}.png'}\n"
        "background: {model: color}\ncaption: {model: none}\n"
    )
    table.write_text("key\nmug.jpg\nbare.jpg\n")
    command = ["run", str(photos), "--out", str(tmp_path / "out"), "--json", "--recipe", str(recipe)]
    command += ["--manifest", str(table)]
    summaries = []
    for box in ((60, 60, 200, 200), None, (80, 80, 220, 200)):
        if box:
            mask = Image.new("L", (320, 240))
            ImageDraw.Draw(mask).rectangle(box, fill=255)
            mask.save(masks / "mug.png")
        done = vitrina(*command)
        summaries.append(last_line(done))
        assert done.returncode == 1, done.stderr
    assert [(s["items"], s["done"], s["failed"], s["skipped"]) for s in summaries] == [
        (2, 1, 1, 0),
        (2, 1, 1, 1),
        (2, 1, 1, 0),
    ]
    assert len(list((tmp_path / "out" / "mug.jpg").glob("mask-*.png"))) == 2
