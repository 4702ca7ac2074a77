"""What a worker is called: what Flower, the logs and `celery inspect` tell it by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from producer.launch import threads_for, worker_command
from producer.recipes import find_recipe
from shared.keys import STAGES
from shared.settings import Settings


def name(device: str) -> str:
    command = worker_command("captioning", Settings(device=device))
    return command[command.index("-n") + 1].replace(f"-{os.getpid()}@%h", "")


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool, which knows of one GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\n")
    tool.chmod(0o755)
    return tool


def test_it_says_the_stage_and_the_gpu(gpus: Path) -> None:
    """Also of the only one of a machine; a worker on the CPU has none, nor one whose GPU is not there."""
    assert [name(device) for device in ("auto", "cuda", "cuda:0")] == ["captioning-gpu0"] * 3
    assert [name(device) for device in ("cpu", "cuda:1")] == ["captioning"] * 2
    gpus.write_text("#!/bin/sh\necho 81559\necho 81559\n")
    assert name("cuda:1") == "captioning-gpu1"


def test_a_gpu_goes_by_its_number_on_the_machine(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than by its place among those that the worker may see; by the beginning of its id where it has been given that."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f12ab34-93c1-4bd5")
    assert [name(device) for device in ("auto", "cuda:0", "cuda:1")] == [
        "captioning-gpu3",
        "captioning-gpu3",
        "captioning-gpu-8f12ab34",
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert name("auto") == "captioning"


def test_a_worker_has_twice_as_many_threads_as_its_batch(gpus: Path) -> None:
    """Of the model that it is to load, where nobody says otherwise; a CPU has few."""
    recipe = find_recipe("production")
    on_gpu = Settings(preload=recipe)
    assert [threads_for(stage, on_gpu) for stage in STAGES] == [32, 32, 128]
    assert threads_for("captioning", Settings(preload=recipe, max_batch=4)) == 8
    assert threads_for("captioning", Settings(preload=recipe, max_batch=4, threads=5)) == 5
    assert threads_for("captioning", Settings(preload=recipe, device="cpu")) == 8
    assert threads_for("captioning", Settings()) == 8
    command = worker_command("captioning", on_gpu)
    assert command[command.index("-c") + 1] == "128"
    assert threads_for("captioning", Settings(preload=gpus.parent / "gone.yaml")) == 8
    gpus.unlink()
    assert threads_for("captioning", on_gpu) == 8
