"""What `make compose-test` says where it cannot run, and what it holds its figures to; what it does with Docker only it can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compose_job import SKIPPED, broken_promises, compare
from compose_pages import no_browser
from compose_stack import StackError
from PIL import Image

RIGHT = {"items": 160, "done": 160, "finished": 160, "lost": 0, "producer_image_mb": 238, "rebuild_seconds": 4.0}


def test_without_docker_it_is_skipped_aloud(tmp_path: Path) -> None:
    """With a status that is neither success nor failure, and the reason in its JSON line."""
    job = Path(__file__).with_name("compose_job.py")
    done = subprocess.run(
        [sys.executable, job],
        env={"PATH": str(tmp_path)},
        cwd=job.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == SKIPPED
    assert json.loads(done.stdout) == {"skipped": "a Docker engine does not answer"}


@pytest.mark.parametrize(
    "wrong", [{"done": 159}, {"finished": 159}, {"lost": 1}, {"producer_image_mb": 250}, {"rebuild_seconds": 15.0}]
)
def test_its_figures_are_held_to_what_is_promised(wrong: dict[str, Any]) -> None:
    """Photos, the image's size, and what a change of code takes to build: one line for each that is not so."""
    assert not list(broken_promises(RIGHT, 160))
    assert len(list(broken_promises(RIGHT | wrong, 160))) == 1


def test_a_browser_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install chromium" in (no_browser() or "")


def made() -> tuple[dict[str, Image.Image], Image.Image]:
    """Return what is made of a photo of noise with a product in its middle, and the photo."""
    photo = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 255
    picture = np.where(mask[..., None] == 255, photo, 240).astype(np.uint8)
    arrays = {"mask": mask, "cutout": np.dstack([photo, mask]), "image": picture}
    return {kind: Image.fromarray(array) for kind, array in arrays.items()}, Image.fromarray(photo)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": Image.new("L", (60, 40), 255)},
        {"cutout": Image.new("RGBA", (60, 40), (9, 9, 9, 255))},
        {"image": Image.new("RGB", (30, 20), "white")},
        {"image": Image.new("RGB", (60, 40), "white")},
    ],
)
def test_what_was_made_of_another_photo_is_noticed(wrong: dict[str, Image.Image]) -> None:
    """By its size, by a mask without an edge, or by a product whose pixels are not the photo's."""
    parts, photo = made()
    compare("a.jpg", parts, photo)
    with pytest.raises(StackError, match=r"a\.jpg"):
        compare("a.jpg", parts | wrong, photo)
