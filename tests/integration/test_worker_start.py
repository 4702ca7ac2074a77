"""How a worker process starts, which commands start one, and what it shows of itself meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_jobs import ROOT, Catalogue, wait_until
from PIL import Image

from producer.embedded import Broker, free_port
from producer.launch import env_for
from shared.broker import make_app
from shared.connection import connect
from shared.recipe import Recipe
from shared.settings import Settings
from workers.boot import Process
from workers.testing import make_instant
from workers.watchdog import STALE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

CELERY = Path(sys.executable).with_name("celery")
ALPHA = Recipe.from_mapping({"segmentation": {"model": "none"}})
"""Needs no weights."""


@contextmanager
def started(settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start Celery's own command; what it says is thrown away."""
    process = subprocess.Popen(
        [CELERY, *arguments], cwd=ROOT, env=os.environ | env_for(settings), stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_shortest_command_of_celery_starts_a_worker(tmp_path: Path) -> None:
    """Without a pool or a number of threads: the application knows them."""
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        (tmp_path / "preload.json").write_bytes(ALPHA.to_json())
        settings = Settings(broker=broker.url, preload=tmp_path / "preload.json")
        app = make_app(settings)
        catalogue = Catalogue(tmp_path, settings, app, client)
        photo = Image.new("RGBA", (80, 60))
        photo.paste((200, 30, 30, 255), (20, 15, 60, 45))
        photo.save(catalogue.photos / "mug.png")
        with started(settings, "-A", "workers.app", "worker", "-Q", "segmentation") as worker:
            job = catalogue.submit(ALPHA)
            progress = catalogue.progress(job)
            wait_until(lambda: progress.counts().stages["segmentation"] or worker.poll() is not None)
            assert worker.poll() is None
        app.close()
    assert {Path(name).name.partition("-")[0] for name in catalogue.outputs()} == {"cutout", "mask"}


def test_a_pool_that_would_hang_is_refused() -> None:
    """In one line, with status 78: no supervisor tries again."""
    done = subprocess.run(
        [CELERY, "-A", "workers.testing", "worker", "-Q", "segmentation", "-P", "solo"],
        cwd=ROOT,
        env=os.environ | env_for(Settings(broker="redis://127.0.0.1:1/0")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert "give --pool threads" in done.stderr
    assert "Traceback" not in done.stderr


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "says nothing"])
def test_a_worker_without_a_broker_lives_and_is_not_ready(tmp_path: Path, *, silent: bool) -> None:
    """A supervisor that ended it would only have it wait again; nobody counts on it meanwhile."""
    beat = tmp_path / "beat"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = free_port()
        settings = Settings(
            broker=f"redis://127.0.0.1:{server.getsockname()[1]}/0", metrics_port=port, heartbeat_file=beat
        )
        if not silent:
            server.close()
        with started(settings, "-A", "workers.testing", "worker", "-Q", "segmentation", "-P", "threads") as worker:
            wait_until(lambda: beat.exists() or worker.poll() is not None)
            first = beat.stat().st_mtime_ns
            wait_until(lambda: status(port, "/healthz") == 200)
            wait_until(lambda: beat.stat().st_mtime_ns > first)
            assert status(port, "/readyz") == 503


HANGING = """
import threading
from shared.settings import Settings
from workers import watchdog
from workers.boot import boot
from workers.testing import InstantModel

class Hanging(InstantModel):
    def load(self, device, threads):
        threading.Event().wait()

watchdog.LOAD_SECONDS = 2
boot(Settings(), lambda stage, section, _: Hanging(stage, section.model)).worker_main(["worker", "-Q", "segmentation"])
"""


def test_a_worker_whose_model_never_loads_ends_itself() -> None:
    """Alive to whoever asks it, and never ready: no supervisor would have ended it."""
    settings = Settings(broker="redis://127.0.0.1:1/0")
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        cwd=ROOT,
        env=os.environ | env_for(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "the loading of a model is past its deadline" in done.stderr) == (70, True), done.stderr


def test_a_broker_that_falls_silent_holds_the_watchdog_up_for_seconds_only() -> None:
    """The thread that asks it how much waits is the one whose beat says that the worker lives."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = Settings(broker=f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        process = Process(silent, make_instant)
        asked = time.monotonic()
        assert not process._messages_wait()
        assert time.monotonic() - asked < STALE_SECONDS / 2
