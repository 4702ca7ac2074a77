"""Whoever writes to a queue, a source or a manifest gets no further than its check."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from made_jobs import ROOT, Catalogue, Workers

from producer.embedded import Broker
from producer.launch import env_for, worker_command
from producer.manifest import Manifest
from producer.publisher import Publisher
from shared.broker import make_app
from shared.connection import connect
from shared.envelope import MAX_BYTES, check_envelope
from shared.keys import STAGES
from shared.messages import Item
from shared.queues import in_flight
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ITEM = {"version": 1, "job": "20261123-142501-3f9a2c", "index": 0, "key": "shoes/1.jpg", "etag": "e"}
FORMULA = "=cmd|' -C calc'!A0.jpg"
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture(scope="module")
def genuine(broker: Broker) -> bytes:
    """A message as a producer writes it."""
    settings = Settings(broker=broker.url)
    app = make_app(settings)
    with connect(settings) as client:
        Publisher(app).publish([Item(**ITEM)], lambda: None)
        app.close()
        return bytes(client.lpop(STAGES[0]))  # type: ignore[arg-type] # a reply is typed for async clients too


def body(*parts: Any) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


def hostile(genuine: bytes, **changes: Any) -> bytes:
    """Change a genuine message: `headers__task="x"` sets one field of a part."""
    message = json.loads(genuine)
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = message
        for parent in parents:
            part = part[parent]
        part[name.replace("_", "-") if name.startswith("content") else name] = value
    return json.dumps(message).encode()


STEP = {"task": "inpainting", "args": [ITEM], "kwargs": {}}
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "noise": (lambda _: b"\x00\xff not json", "it is not JSON"),
    "empty": (lambda _: b"", "it is not JSON"),
    "a list": (lambda _: b"[1, 2]", "it is not JSON of the form"),
    "no headers": (lambda good: hostile(good, headers=None), "it is not JSON of the form"),
    "no tag": (lambda good: hostile(good, properties__delivery_tag=None), "it is not JSON of the form"),
    "deeply nested": (lambda _: DEEP[:60_000].encode(), "it is not JSON"),
    "no text": (lambda good: good[:-1] + b', "x": "\xff"}', "it cannot be read (UnicodeDecodeError)"),
    "another parser's number": (lambda good: good[:-1] + b', "x": 0x10}', "it cannot be read (JSONDecodeError)"),
    "an object of no kind": (
        lambda good: hostile(good, x={"__type__": "os.system", "__value__": "true"}),
        "it cannot be read (ValueError)",
    ),
    "too large": (lambda good: hostile(good, filler="x" * MAX_BYTES), f"bytes are more than {MAX_BYTES}"),
    "pickle": (
        lambda good: hostile(good, content_type="application/x-python-serialize", content_encoding="binary"),
        "content-type must be application/json",
    ),
    "yaml": (lambda good: hostile(good, content_type="application/x-yaml"), "content-type must be application/json"),
    "compressed": (lambda good: hostile(good, headers__compression="application/x-gzip"), "headers.compression"),
    "unknown task": (lambda good: hostile(good, headers__task="os.system"), "headers.task must be"),
    "celery's own task": (lambda good: hostile(good, headers__task="celery.map"), "headers.task must be"),
    "another stage's task": (lambda good: hostile(good, headers__task="captioning"), "a task of captioning"),
    "no id": (lambda good: hostile(good, headers__id=None), "headers.id must be text"),
    "a wrong date": (lambda good: hostile(good, headers__eta="soon"), "headers.eta"),
    "waiting for ever": (lambda good: hostile(good, headers__eta="2999-01-01T00:00:00+00:00"), "to wait until 2999"),
    "body of noise": (lambda good: hostile(good, body="%%%"), "its body is not"),
    "body deeply nested": (
        lambda good: hostile(good, body=base64.b64encode(DEEP[:40_000].encode()).decode()),
        "its body is not",
    ),
    "named arguments": (lambda good: hostile(good, body=body([ITEM], {"x": 1}, {})), "an item and nothing else"),
    "two items": (lambda good: hostile(good, body=body([ITEM, ITEM], {}, {})), "an item and nothing else"),
    "unknown field": (lambda good: hostile(good, body=body([ITEM | {"x": 1}], {}, {})), "exactly the fields"),
    "a callback": (lambda good: hostile(good, body=body([ITEM], {}, {"callbacks": [STEP]})), "callbacks"),
    "another step": (
        lambda good: hostile(good, body=body([ITEM], {}, {"chain": [STEP | {"task": "x"}]})),
        "a step that follows must be one of",
    ),
    "a step with another item": (
        lambda good: hostile(good, body=body([ITEM], {}, {"chain": [STEP | {"args": [{}]}]})),
        "takes the same item",
    ),
    **{
        f"key {key!r}": (
            lambda good, key=key: hostile(good, body=body([ITEM | {"key": key}], {}, {})),  # type: ignore[misc] # mypy knows no defaults of lambdas
            "rename",
        )
        for key in ("../../etc/passwd", "/etc/passwd", "a\\b", "a\0b", "a\x1b[2Jb", "a//b", "")
    },
}


def test_a_genuine_message_passes(genuine: bytes) -> None:
    """What is refused below is refused for what was changed in it."""
    check_envelope(json.loads(genuine), STAGES[0])
    check_envelope(json.loads(genuine), f"{STAGES[0]}.priority")
    assert len(genuine) < MAX_BYTES / 16


@contextmanager
def real_worker(settings: Settings) -> Iterator[None]:
    """Run a worker of the first stage with its real models."""
    command = worker_command(STAGES[0], settings)
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | env_for(settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def worker(folder: Path, settings: Settings) -> Iterator[Callable[[], str]]:
    """Run a worker of the first stage with instant models; what is yielded reads its log."""
    options = ["-P", "threads", "-c", "2", "--without-gossip", "--without-mingle", "-n", "lone@test"]
    command = [sys.executable, "-m", "celery", "-A", "workers.testing", "worker", "-Q", STAGES[0], *options]
    path = folder / "worker.log"
    with (
        path.open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=os.environ | env_for(settings), stdout=log, stderr=log) as process,
    ):
        try:
            yield path.read_text
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(20)


def test_hostile_messages_leave_the_queue_with_a_line_each(tmp_path: Path, broker: Broker, genuine: bytes) -> None:
    """No poison loop, no traceback, nothing raw in the log; the item behind them all is made."""
    settings = Settings(broker=broker.url, visibility_timeout=1)
    app = make_app(settings)
    with connect(settings) as client:
        catalogue = Catalogue(tmp_path, settings, app, client)
        catalogue.add("a.jpg", "photo")
        for make, _ in HOSTILE.values():
            client.lpush(STAGES[0], make(genuine))
        assert in_flight(client).keys() <= {ITEM["job"]}  # a producer that looks for lost items reads them too
        job = catalogue.submit()
        with worker(tmp_path, settings) as log:
            deadline = time.monotonic() + 60
            while not catalogue.progress(job).counts().stages[STAGES[0]]:
                assert time.monotonic() < deadline, log()
                time.sleep(0.05)
            time.sleep(2 * settings.visibility_timeout)  # what was not removed would be back
            assert client.llen(STAGES[0]) == client.hlen("unacked") == client.zcard("unacked_index") == 0
            text = log()
    app.close()
    lines = [line for line in text.splitlines() if "message refused" in line]
    assert len(lines) == len(HOSTILE)
    for (name, (_, words)), line in zip(HOSTILE.items(), lines, strict=True):
        assert words in line, f"{name}: {line}"
        assert len(line) < 300, name
    assert "Traceback" not in text
    assert "\x1b" not in text


def vitrina(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "producer.cli", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> tuple[Path, str]:
    """A job of photos with names and rows that mean harm, made by instant workers; its folder and id."""
    folder = tmp_path_factory.mktemp("shop")
    settings = Settings(broker=broker.url, visibility_timeout=4)
    own = Workers(settings)
    photos = folder / "photos"
    photos.mkdir()
    for name in (FORMULA, "<script>alert(1).jpg", "[red]:pill:.jpg"):
        (photos / name).write_text("photo")
    (photos / "\x1b[2Jgone\r.jpg").write_text("photo")
    (photos / "\x9b31m.jpg").write_text("photo")
    (folder / "secret").write_text("photo")
    (photos / "link.jpg").symlink_to(folder / "secret")
    try:
        for stage in STAGES:
            own.start(stage, stage)
        done = vitrina(
            "run", "photos", "--out", "out", "--report", "report.html", "--json", cwd=folder, VITRINA_BROKER=broker.url
        )
    finally:
        own.stop()
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (3, 3), done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder, summary["job"]


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def test_a_name_steers_no_terminal(shop: tuple[Path, str], broker: Broker) -> None:
    """Neither by control characters nor by markup, in words, tables and data."""
    folder, job = shop
    said = (folder / "stderr").read_text()
    assert "\\x1b[2Jgone\\r.jpg" in said
    texts = [said]
    for arguments in (
        ("status", job),
        ("status", job, "--json"),
        ("jobs", "--out", "out"),
        ("jobs", "--out", "out", "--json"),
        ("export", job, "--format", "csv"),
        ("export", job, "--format", "jsonl"),
    ):
        done = vitrina(*arguments, cwd=folder, VITRINA_BROKER=broker.url)
        assert done.returncode in {0, 1}, done.stderr
        texts += [done.stdout, done.stderr]
    assert not any(CONTROLS.search(text) for text in texts)
    rows = [json.loads(line) for line in texts[-2].splitlines()]
    assert {"\x1b[2Jgone\r.jpg", "\x9b31m.jpg", "[red]:pill:.jpg"} < {row["key"] for row in rows}
    broken = vitrina("status", "no\x1b[2J", cwd=folder, VITRINA_BROKER=broker.url)
    assert broken.returncode == 2
    assert not CONTROLS.search(broken.stderr)


def test_a_link_out_of_the_source_is_never_read(shop: tuple[Path, str], broker: Broker) -> None:
    """It gets a failure and no file, as do a manifest that names it, and a mask behind it."""
    folder, job = shop
    assert not list((folder / "out").rglob("*link*"))
    told = vitrina("export", job, "--format", "jsonl", "--only", "failed", cwd=folder, VITRINA_BROKER=broker.url)
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert [row["key"] for row in rows if "through a link: put a copy" in json.dumps(row)] == ["link.jpg"]
    (folder / "m.csv").write_text("key,mask\nlink.jpg,\n[red]:pill:.jpg,link.jpg\n")
    (folder / "supplied.yaml").write_text("segmentation: {model: none, mask: supplied}\n")
    arguments = ("--manifest", "m.csv", "--recipe", "supplied.yaml", "--out", "other")
    settings = Settings(broker=broker.url)
    with real_worker(settings):
        done = vitrina("run", "photos", *arguments, "--json", cwd=folder, VITRINA_BROKER=broker.url)
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 2, done.stderr
    assert re.search(r"missing, 1 item: .*\n    link\.jpg: ", done.stderr)
    assert re.search(r"bad_key, 1 item: .*\n    \[red\]:pill:\.jpg: ", done.stderr)
    assert not [path for path in (folder / "other").rglob("*") if path.suffix == ".png"]


def test_a_formula_is_text_and_comes_back_as_it_was(shop: tuple[Path, str], broker: Broker, tmp_path: Path) -> None:
    """A table that we wrote is one that `--manifest` reads, apostrophe or none."""
    folder, job = shop
    done = vitrina("export", job, "--format", "csv", "--only", "done", cwd=folder, VITRINA_BROKER=broker.url)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    path = tmp_path / "again.csv"
    path.write_text(done.stdout)
    keys = {photo.key for photo in Manifest(path).photos()}
    assert FORMULA in keys


def test_a_report_shows_names_and_runs_none(shop: tuple[Path, str]) -> None:
    """Whole, through the command: the unit tests look at every field."""
    folder, _ = shop
    page = (folder / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert not CONTROLS.search(page)


def test_an_edited_record_names_no_other_file(shop: tuple[Path, str], broker: Broker) -> None:
    """Reports and exports link what lies in the item's own folder, whatever its record says."""
    folder, job = shop
    (record,) = (folder / "out" / "[red]:pill:.jpg").glob("caption-*.json")
    content = json.loads(record.read_text())
    kept = content["outputs"]["mask"]
    content["outputs"] |= {"image": "../../secret", "cutout": "[red]:pill:.jpg/../../secret"}
    record.write_text(json.dumps(content))
    for part in ("results", "failures.jsonl"):
        shutil.rmtree(folder / "out" / "jobs" / job / part, ignore_errors=True)
    done = vitrina("export", job, "--format", "jsonl", "--only", "done", cwd=folder, VITRINA_BROKER=broker.url)
    row = next(row for row in map(json.loads, done.stdout.splitlines()) if row["key"] == "[red]:pill:.jpg")
    assert row["mask"] == kept
    assert "secret" not in done.stdout
    vitrina("report", job, "--to", "again.html", cwd=folder, VITRINA_BROKER=broker.url)
    assert "secret" not in (folder / "again.html").read_text()


def test_secrets_are_neither_told_nor_helped_to(tmp_path: Path) -> None:
    """Not by `--help`, not by a broker or storage that is away, not by a setting that is wrong beside them."""
    secret = "open-sesame"  # noqa: S105 - the test's own
    given = {
        "VITRINA_BROKER": f"redis://:{secret}@127.0.0.1:1/0",
        "VITRINA_FLOWER_AUTH": f"boss:{secret}",
        "VITRINA_ACCESS_KEY_ID": "key",
        "VITRINA_SECRET_ACCESS_KEY": secret,
        "VITRINA_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    for arguments, more in ((("run", "--help"), {}), (("doctor",), {}), (("up",), {"VITRINA_WINDOW": "none"})):
        done = vitrina(*arguments, cwd=tmp_path, **given | more)
        assert done.stdout + done.stderr
        assert secret not in done.stdout + done.stderr
