"""Segment Anything: from the original script's generator to ours. Survivors are forced: one point in ten gives one mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench.ladder.timing import Bench, Rung, count_flops
from workers.random_models.sam import TINY_SIDE, build_sam, save_sam
from workers.segmentation.sam.generator import Generator, Grid
from workers.segmentation.sam.networks import load
from workers.segmentation.sam.views import cut

if TYPE_CHECKING:
    from pathlib import Path

    from workers.random_models.diffusion import Size

SURVIVORS = 10
"""One point in this many passes; photos of products keep about as many."""


class Scores(torch.nn.Module):
    """Stands in for the head that predicts a mask's quality: the same points pass whatever the weights."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return 1 for one mask of every tenth point, else 0."""
        scores = tokens.new_zeros(tokens.shape[:-1].numel(), self._outputs)
        scores[::SURVIVORS, 1] = 1
        return scores.view(*tokens.shape[:-1], self._outputs)


def ladder(bench: Bench, size: Size, folder: Path, batch: int) -> list[Rung]:
    """Measure the rungs, the original way first."""
    full = size == "full"
    side = 1024 if full else TINY_SIDE
    points = (32, 16) if full else (8, 4)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    rungs = _original(bench, size, pixels, points[0])
    networks = load(
        save_sam(folder / "sam.pth", size=size),
        bench.device,
        torch.bfloat16 if bench.device.type == "cuda" else torch.float32,
    )
    networks.decoder.score_head = Scores(networks.sizes.outputs + 1)
    generator = Generator(networks)
    views = [cut(Image.fromarray(pixels), side, 0)] * batch
    for count in points:
        grid = Grid(count, 0.5, 0.0, 1.0)

        def run(grid: Grid = grid) -> Any:
            return generator.everything(views, grid)

        flops = count_flops(run, batch)
        encode = bench.part(lambda: generator._encode([view for photo in views for view in photo]), batch)  # noqa: SLF001 - one part of it
        rung = bench.measure(
            f"ours, {count}² points, batch of {batch}", batch, run, flops=flops, parts={"encoder": encode}
        )
        rungs.append(rung)
    return rungs


def _original(bench: Bench, size: Size, pixels: np.ndarray, points: int) -> list[Rung]:
    from segment_anything import SamAutomaticMaskGenerator  # noqa: PLC0415 - heavy

    model = build_sam(size=size).to(bench.device)
    model.mask_decoder.iou_prediction_head = Scores(4)
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_side=points,
        points_per_batch=64,
        pred_iou_thresh=0.5,
        stability_score_thresh=0.0,
        box_nms_thresh=1.0,
    )
    rungs = [bench.measure(f"original: {points}² points, one photo, float32", 1, lambda: generator.generate(pixels))]
    if bench.device.type == "cuda":

        def half() -> Any:
            with torch.autocast("cuda", torch.bfloat16):
                return generator.generate(pixels)

        rungs.append(bench.measure(f"the same in bfloat16 (autocast), {points}² points", 1, half))
    return rungs
