"""What a task meets that nobody foresaw: its message goes back, and its item ends all the same."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down
from made_jobs import ROOT, Catalogue

from producer.launch import env_for
from shared.errors import OutOfMemoryError, StorageError
from shared.keys import STAGES
from shared.messages import Item
from shared.progress import Progress
from workers import tasks
from workers.outage import Outage
from workers.quarantine import Quarantine
from workers.runner import Runner
from workers.tasks import Guard, StageTask, register
from workers.testing import InstantModel, make_instant
from workers.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery import Celery
    from redis import Redis

    from shared.settings import Settings

THREADS = 2


@contextmanager
def working(app: Celery, settings: Settings, wedged: list[str] | None = None) -> Iterator[None]:
    """Run a worker of all stages in this process, where a test reaches into it; `wedged` is told what would have ended it."""
    stopping = threading.Event()
    runners = {stage: Runner(stage, settings, make=make_instant, stopping=stopping.is_set) for stage in STAGES}
    dog = Watchdog(
        task_deadline=600,
        stall_deadline=600,
        waiting=lambda: False,
        on_wedged=lambda what, _: None if wedged is None else wedged.append(what),
    )
    dog.start()
    root = logging.getLogger()
    level = root.level
    register(app, runners, Guard(Quarantine(stopping.is_set), Outage(600), dog))
    with pytest.MonkeyPatch.context() as patch:
        for signal in (setup_logging, worker_init, worker_ready, worker_shutting_down, worker_shutdown):
            # `workers.testing` listens, which is a whole process's.
            patch.setattr(signal, "receivers", [])
        try:
            with start_worker(app, pool="threads", concurrency=THREADS, perform_ping_check=False, shutdown_timeout=60):
                yield
        finally:
            dog.close()
            root.setLevel(level)  # Celery's testing worker leaves it at errors alone, for all tests that follow
    for runner in runners.values():
        runner.close()


@pytest.fixture
def catalogue(tmp_path: Path, settings: Settings, app: Celery, client: Redis) -> Catalogue:
    """A catalogue that no worker of another process works on."""
    client.flushdb()
    return Catalogue(tmp_path, settings, app, client)


def failing(where: str, error: BaseException, times: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let something raise a few times, and go on as it did; return where it was raised so far."""
    raised: list[str] = []
    if where == "from_wire":  # there alone: the transport uses it as well
        monkeypatch.setattr(tasks, "Item", SimpleNamespace(from_wire=Item.from_wire))
    owner: Any = tasks.Item if where == "from_wire" else StageTask
    real = getattr(owner, where)

    def fails(*args: Any, **kwargs: Any) -> Any:
        if len(raised) < times:
            raised.append(where)
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, where, fails)
    return raised


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(3), ZeroDivisionError("a bug")], ids=repr)
@pytest.mark.parametrize("where", ["from_wire", "_again", "_fail", "_pass_on"])
def test_whatever_a_task_meets_its_job_ends(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    """More often than there are threads: each would be lost for good, and the message be held for ever."""
    raised = failing(where, error, THREADS + 1, monkeypatch)
    if where == "_again":
        tried: list[int] = []
        run = Runner.run

        def fails_at_first(self: Runner, item: Any) -> Any:
            tried.append(item.index)
            if tried.count(item.index) <= 1:
                raise OutOfMemoryError("none left")
            return run(self, item)

        monkeypatch.setattr(Runner, "run", fails_at_first)
    monkeypatch.setattr(tasks, "ESCAPE_WAIT", 0.01)
    for number in range(5):
        catalogue.add(f"{number}.jpg", "bad" if where == "_fail" else "photo")
    with working(catalogue.app, catalogue.settings):
        job = catalogue.submit()
        summary = catalogue.follow(job)
        catalogue.settle()
    assert len(raised) == THREADS + 1
    assert (summary.done, summary.failed) == ((0, 5) if where == "_fail" else (5, 0))


class Ending:
    """A worker's shutdown, which is over as soon as somebody has seen it."""

    def __init__(self) -> None:
        self._seen = True

    def set(self) -> None:
        self._seen = False

    def is_set(self) -> bool:
        seen, self._seen = self._seen, True
        return not seen

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.mark.parametrize("shutting_down", [True, False])
def test_a_task_that_is_told_to_exit_is_handed_back_only_while_the_worker_ends(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, *, shutting_down: bool
) -> None:
    """Then it says nothing of the photo; at any other time that is a fault like others."""
    ending = Ending()
    monkeypatch.setattr(tasks, "stopping", ending)
    exited: list[int] = []
    run = Runner.run

    def exits_at_first(self: Runner, item: Any) -> Any:
        if exited:
            return run(self, item)
        exited.append(item.index)
        if shutting_down:
            ending.set()
        raise SystemExit(0)

    monkeypatch.setattr(Runner, "run", exits_at_first)
    catalogue.add("a.jpg", "photo")
    with working(catalogue.app, catalogue.settings):
        summary = catalogue.follow(catalogue.submit())
        catalogue.settle()
    assert (summary.done, summary.failed) == ((1, 0) if shutting_down else (0, 1))


def test_a_retry_that_waits_longer_than_the_visibility_timeout_is_run_once(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker holds it and renews its lease: it is handed to nobody meanwhile."""
    settings = catalogue.settings
    monkeypatch.setattr(tasks.random, "uniform", lambda *_: 1.0)
    tried: list[float] = []

    def fails(self: Runner, item: Any) -> Any:
        del self, item
        tried.append(time.monotonic())
        raise StorageError("away")

    monkeypatch.setattr(Runner, "run", fails)
    catalogue.add("a.jpg", "photo")
    patient = settings.model_copy(update={"retry_base": 2.5 * settings.visibility_timeout, "max_attempts": 2})
    with working(catalogue.app, patient):
        assert catalogue.follow(catalogue.submit()).failed == 1
        catalogue.settle()
    assert len(tried) == 2
    assert tried[1] - tried[0] > 2 * settings.visibility_timeout


@pytest.mark.parametrize("slow", ["load", "prepare"])
def test_a_suspect_is_not_judged_by_the_time_its_model_takes_to_load(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """A worker that has just replaced a dead one begins with it: what is slow may be the photo's own work alone."""
    real = getattr(InstantModel, slow)

    def slowly(self: InstantModel, *args: Any) -> Any:
        time.sleep(3)
        return real(self, *args)

    monkeypatch.setattr(InstantModel, slow, slowly)
    catalogue.add("a.jpg", "photo")
    job = catalogue.submit()
    Progress(catalogue.client, job.id).attempt(STAGES[0], 0)
    wedged: list[str] = []
    with working(catalogue.app, catalogue.settings.model_copy(update={"batch_deadline": 1.0}), wedged):
        assert catalogue.follow(job).done == 1
        catalogue.settle()
    assert bool(wedged) == (slow == "prepare")


def test_a_worker_that_has_lost_a_message_ends_and_the_next_one_finds_it(catalogue: Catalogue, tmp_path: Path) -> None:
    """Nothing waits and nothing works, and it holds one all the same: it would renew its lease for ever."""
    settings = catalogue.settings.model_copy(update={"stall_deadline": 3.0})
    leaked = tmp_path / "leaked"
    places = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "integration")))
    environment = os.environ | env_for(settings) | {"VITRINA_TEST_LEAK": str(leaked), "PYTHONPATH": places}
    command = [sys.executable, "-m", "celery", "-A", "made_leaks", "worker", "-Q", ",".join(STAGES), "-n", "leaks@test"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)

    catalogue.add("a.jpg", "photo")
    job = catalogue.submit()
    worker = start()
    try:
        _, said = worker.communicate(timeout=120)
        assert (worker.returncode, b"nothing gets on although there is work" in said) == (70, True)
        assert leaked.exists()
        worker = start()
        threading.Thread(target=worker.communicate, daemon=True).start()
        assert catalogue.follow(job).done == 1
        catalogue.settle()
    finally:
        worker.terminate()
        worker.wait(60)
