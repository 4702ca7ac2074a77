"""A model that cannot fit is refused before it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from producer.launch import env_for
from shared.errors import ModelTooLargeError
from shared.recipe import Blip2Caption, DiffusionBackground, Recipe, SamSegmentation
from shared.settings import Settings
from workers import room

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.recipe import ModelSection

SAM = SamSegmentation(model="sam", weights="sam-vit-h")
BLIP2 = Blip2Caption(model="blip2", weights="blip2-opt-2.7b")
SDXL = DiffusionBackground(model="diffusion", weights="sdxl")


def fits(section: ModelSection, gigabytes: float, monkeypatch: pytest.MonkeyPatch, *, gpu: bool = False) -> bool:
    """Whether a model is made on a machine, or a GPU beside plenty of it, of so much memory."""
    amount = int(gigabytes * 1e9)
    monkeypatch.setattr("workers.devices.device_for", lambda _: torch.device("cuda" if gpu else "cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, amount))
    monkeypatch.setattr(room, "machine_bytes", lambda: 10**12 if gpu else amount)
    stage: StageName = (
        "segmentation" if section is SAM else "captioning" if isinstance(section, Blip2Caption) else "inpainting"
    )
    try:
        room.make_fitting(stage, section, Settings())
    except ModelTooLargeError as error:
        assert "choose smaller ones, or a larger machine" in str(error)  # noqa: PT017 - as the cause of False
        return False
    return True


@pytest.mark.parametrize(
    ("section", "gpu", "less", "enough"),
    [
        (SAM, False, 3.9, 4.1),
        (BLIP2, False, 14, 15),
        (SAM, True, 3.9, 4.1),
        (BLIP2, True, 4.9, 5.1),  # in half precision
        (SDXL, True, 7.9, 8.1),
    ],
)
def test_weights_that_alone_are_more_than_there_is_are_refused(
    section: ModelSection, *, gpu: bool, less: float, enough: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest, which is for a batch, may be less than usual: batches get smaller."""
    assert not fits(section, less, monkeypatch, gpu=gpu)
    assert fits(section, enough, monkeypatch, gpu=gpu)


def test_what_nothing_is_known_of_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights of one's own, smaller ones in eight bits, those that wait in the machine's memory for their turn on a GPU, and starter models."""
    assert fits(BLIP2.model_copy(update={"weights": str(tmp_path)}), 0.1, monkeypatch)
    assert fits(BLIP2.model_copy(update={"quantize": "int8"}), 3, monkeypatch, gpu=True)
    assert fits(SDXL.model_copy(update={"offload": "model"}), 3, monkeypatch, gpu=True)
    assert fits(Recipe().background, 0.1, monkeypatch)


START = """
import sys
from workers import room
room.machine_bytes = lambda: 2 * 10**9
sys.argv = ["celery", "-A", "workers.app", "worker", "-Q", "segmentation"]
from celery.__main__ import main
main()
"""


def test_a_worker_without_room_for_its_model_says_so_and_ends(tmp_path: Path) -> None:
    """In one line, with status 78: a supervisor that tried again would find as little."""
    (tmp_path / "recipe.json").write_bytes(Recipe.from_mapping({"segmentation": SAM.model_dump(mode="json")}).to_json())
    settings = Settings(broker="redis://127.0.0.1:1/0", device="cpu", preload=tmp_path / "recipe.json")
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=Path(__file__).parents[2],
        env=os.environ | env_for(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert "the weights of sam-vit-h alone take about 4.0 GB and this machine or container has 2.0" in done.stderr
    assert "Traceback" not in done.stderr
