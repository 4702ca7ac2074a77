"""The embedded stack starts on free ports, answers, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from producer.embedded import Broker, EmbeddedError, S3Server, Service, Stack
from shared.connection import connect
from shared.keys import STAGES
from shared.settings import Settings

ROOT = Path(__file__).parents[2]


def test_a_whole_stack_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    """Broker, S3, three workers, Flower: Flower lists the workers, and no process stays."""
    with Stack(Settings(), s3=True, workers=STAGES, flower=True, data_dir=tmp_path, app="workers.testing") as stack:
        children = psutil.Process().children(recursive=True)
        assert len(children) >= 6
        with connect(stack.settings) as client:
            assert client.ping()
        with urllib.request.urlopen(stack.flower_url, timeout=10) as page:
            assert b"Flower" in page.read()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_two_stacks_do_not_meet(tmp_path: Path) -> None:
    """Ports are free ones."""
    with Broker(tmp_path / "a") as one, Broker(tmp_path / "b") as two, S3Server(tmp_path / "c") as server:
        assert one.url != two.url
        assert server.ready()


def test_a_service_that_ends_at_its_start_shows_its_log(tmp_path: Path) -> None:
    """The last lines and where the rest is."""
    broken = Service("broken", [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], tmp_path)
    broken.ready = lambda: False  # type: ignore[method-assign]
    with pytest.raises(EmbeddedError, match="no such thing"):
        broken.__enter__()
    broken.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux alone")
def test_the_stack_dies_with_its_owner(tmp_path: Path) -> None:
    """SIGKILL of the command leaves no server behind."""
    code = (
        "import sys, time, pathlib; from producer.embedded import Broker\n"
        "with Broker(pathlib.Path(sys.argv[1])) as b: print(b.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        broker = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(broker).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_dead_worker_is_started_again(tmp_path: Path) -> None:
    """A job in the foreground outlives its workers."""
    with Stack(
        Settings(), s3=False, workers=STAGES[:1], flower=False, data_dir=tmp_path, app="workers.testing"
    ) as stack:
        worker = stack.workers[0]
        before = worker.pid
        os.kill(before, signal.SIGKILL)
        while worker.running:
            time.sleep(0.05)
        stack.look_after()
        assert worker.running
        assert worker.pid != before
