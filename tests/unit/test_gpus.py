"""Which GPU a worker takes on a machine with several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from producer.gpus import device_memory, take, visible
from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WORKER = """
import os, sys
from pathlib import Path
from producer.gpus import take
print(take(Path(sys.argv[1]), sys.argv[2].split(",")), flush=True)
os.execvp("cat", ["cat"])  # as `vitrina worker` becomes Celery's
"""


class Machine:
    """Processes that each take a GPU of one machine and keep it until they are ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[str]] = []

    def start(self, gpus: str = "0,1,GPU-8f/2") -> str:
        command = [sys.executable, "-c", WORKER, str(self.folder), gpus]
        worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.workers.append(worker)
        assert worker.stdout
        return worker.stdout.readline().strip()

    def kill(self, number: int) -> None:
        self.workers[number].kill()
        self.workers[number].communicate()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "claims")
    yield machine
    for number in range(len(machine.workers)):
        machine.kill(number)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool, to be written."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path / "nvidia-smi"


def test_each_worker_takes_the_gpu_with_the_fewest(machine: Machine) -> None:
    """One each, then two each; a killed worker's place is the next to be taken."""
    assert [machine.start() for _ in range(4)] == ["0", "1", "GPU-8f/2", "0"]
    machine.kill(1)
    assert [machine.start() for _ in range(3)] == ["1", "1", "GPU-8f/2"]


def test_gpus_are_those_that_may_be_used(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the driver knows, unless the environment says which; none where there is no driver, or it answers nonsense."""
    driver.write_text("#!/bin/sh\necho 512\necho 81559\n")
    driver.chmod(0o755)
    assert visible() == ["0", "1"]
    assert device_memory() == 81559 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    assert visible() == ["3", "GPU-8f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert visible() == []
    assert device_memory() is None


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """With the settings that help."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"VITRINA_GPU_CLAIMS.*VITRINA_DEVICE"):
        take(tmp_path / "file" / "claims", ["0", "1"])
