"""Networks that are really compiled (`torch.compile`), with the compiler of this machine."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from made_diffusion import engine, levels, request, save_all, section
from made_sam import taught_sam
from torch._dynamo.utils import counters

from shared.recipe import SamSegmentation
from workers.inpainting.diffusion.model import DiffusionModel
from workers.inpainting.diffusion.presets import settings
from workers.segmentation.sam.generator import Grid
from workers.segmentation.sam.model import SamModel
from workers.segmentation.sam.views import View

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000, "max_batch": 8}
SIZES = 1, 2, 3, 5, 8
"""Batches up to the largest that is ever run."""

pytestmark = [
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="no C++ compiler, which torch.compile needs on a CPU: install g++"
    ),
    pytest.mark.timeout(1200),  # some six compilations, each of which takes minutes on a machine that does much else
]


class Nothing:
    """A saliency network that sees nothing."""

    def load(self, threads: int) -> None:
        """Load nothing."""

    def run(self, tensor: np.ndarray) -> np.ndarray:
        """Return an empty map."""
        return np.zeros(tensor.shape[1:], np.float32)


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """Forget what was compiled before, and after."""
    torch.set_num_threads(1)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compilations() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_a_compiled_pipeline_compiles_nothing_after_its_start(tmp_path: Path) -> None:
    """Every batch up to the operator's largest runs in what the warm-up left, and gives the pictures that it gives uncompiled."""
    folder = save_all(tmp_path, "9 channels")["9 channels"]
    chosen = section(folder, compile=True)
    model = DiffusionModel(chosen, tmp_path, Nothing(), **LIMITS)
    model.load("cpu", 1)
    ready = compilations()
    assert ready > 0, "nothing was compiled"
    plain, _ = engine(folder)
    compiled: Any = model._engine
    for size in SIZES:
        asked = [request(seed) for seed in range(size)]
        pairs = zip(*(each.generate(asked, settings(chosen, 0)) for each in (compiled, plain)), strict=True)
        assert max(levels(ours.rgb, theirs.rgb) for ours, theirs in pairs) <= 2
    assert compilations() == ready


def test_a_compiled_encoder_compiles_nothing_after_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does Segment Anything's, whose masks are those of the encoder as it is."""
    monkeypatch.setattr(SamModel, "max_batch", max(SIZES))  # as on a GPU; on a CPU photos come one by one
    torch.save(taught_sam().state_dict(), tmp_path / "taught.pth")
    grid = Grid(points_per_side=4, min_predicted_iou=0.1, min_stability=0.5, max_overlap=0.7)
    models = []
    for compiled in (False, True):
        chosen = SamSegmentation(model="sam", weights=str(tmp_path / "taught.pth"), prior=False, compile=compiled)
        models.append(SamModel(chosen, tmp_path, **LIMITS))
        models[-1].load("cpu", 1)
    ready = compilations()
    assert ready > 0, "nothing was compiled"
    plain, compiled_too = (model._generator for model in models)
    noise = np.random.default_rng(1).integers(0, 255, (max(SIZES), 128, 128, 3), np.uint8)
    for size in SIZES:
        photos = [[View(pixels, (0, 0, 128, 128), (128, 128))] for pixels in noise[:size]]
        for ours, theirs in zip(compiled_too.everything(photos, grid), plain.everything(photos, grid), strict=True):
            np.testing.assert_allclose(ours.predicted_iou, theirs.predicted_iou, atol=1e-4)
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1)
    assert compilations() == ready
