"""Commands that are interrupted: whenever it happens, they end with status 130, say how to go on, and leave nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from made_commands import ROOT, VITRINA, vitrina_here

from producer.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from made_jobs import Catalogue

GO_ON = "interrupted; run the same command again: what is finished is skipped"


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["up"], signal.SIGINT),
        (["up"], signal.SIGTERM),
        (["run", "{tmp}/photos", "--out", "{tmp}/out"], signal.SIGINT),
        (["demo", "{tmp}/photos", "--to", "{tmp}/demo"], signal.SIGTERM),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value.name,
)
def test_services_can_be_stopped_while_they_start(
    tmp_path: Path, models: None, command: list[str], number: signal.Signals
) -> None:
    """At once, without a traceback, and nothing stays."""
    del models
    (tmp_path / "photos").mkdir()
    filled = [word.replace("{tmp}", str(tmp_path)) for word in command]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*VITRINA, *filled], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    while not list(tmp_path.glob("vitrina-*/logs/segmentation.log")):
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith(GO_ON)
    assert "Traceback" not in said
    # One that was being made when the signal came is ended by the kernel, a moment after its owner.
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert list(tmp_path.glob("vitrina-*")) == []


@pytest.mark.parametrize("step", ["feed", "follow", "finish", "report"])
def test_a_job_can_be_interrupted_at_every_step(
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    """While it is fed, followed, summed up or reported: the same line, and the same command goes on."""
    catalogue.add("mug.jpg", "a mug")
    broker = catalogue.settings.broker.get_secret_value()
    run = ["run", str(catalogue.photos), "--out", str(catalogue.out), "--broker", broker]
    run += ["--report", str(tmp_path / "report.html")]

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Session, step, interrupted)
        assert vitrina_here(patch, *run) == 130
    assert capsys.readouterr().err.endswith(f"vitrina: {GO_ON}\n")
    assert vitrina_here(monkeypatch, *run) == 0
    assert "1 of 1 done" in capsys.readouterr().err
    assert (tmp_path / "report.html").is_file()
