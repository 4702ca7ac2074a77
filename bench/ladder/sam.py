"""Segment Anything: from the original script's generator to ours.

Random weights would draw noise, which costs the original way seconds that photos do not: noise has a hundred thousand runs to encode
where an outline has a thousand. So in both ways one point in ten gives one mask, and a mask is a disc. The networks do all their work;
only what comes out is replaced.
"""

from __future__ import annotations

import io
import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.ladder.timing import compiled
from bench.ladder.ways import Ladder, Way, set_by, usual_batch
from shared.recipe import Recipe, SamSegmentation
from workers.random_models.sam import TINY_SIDE, build_sam
from workers.segmentation.sam import generator as generation
from workers.segmentation.sam.generator import Generator, Grid
from workers.segmentation.sam.model import SamModel
from workers.segmentation.sam.networks import load
from workers.segmentation.sam.views import cut
from workers.stage import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.ladder.timing import Bench
    from workers.random_models.diffusion import Size

ENCODER, POINT = 5.96e12, 3.6e9
"""FLOPs of ViT-H on one photo, and of the decoder on one point."""
SURVIVORS = 10
"""One point in this many passes; photos of products keep about as many."""
PRIOR_SECONDS = 0.4
"""Of one core, for the saliency prior of one photo."""
ROUNDS = 3
"""Photos whose work around the networks is timed."""


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


class Discs(torch.nn.Module):
    """Runs the layers that enlarge a picture's embedding, then sets a disc in each of its channels, in another place in each."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self._layers = layers
        self._discs: torch.Tensor | None = None

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return channels of which each is the logits of a disc."""
        large: torch.Tensor = self._layers(pictures)
        if self._discs is None:
            self._discs = discs(large.shape[1], large.shape[2]).to(large)
        return large.copy_(self._discs)


class Pick(torch.nn.Module):
    """Runs the head that makes a mask's filter of its token, then makes it pick one channel, another for each row."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self._head = head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return one unit vector per row."""
        filters: torch.Tensor = self._head(tokens)
        rows, channels = filters.shape
        return filters.copy_(torch.eye(channels, device=filters.device).repeat(-(-rows // channels), 1)[:rows])


def discs(count: int, side: int) -> torch.Tensor:
    """Return the logits of discs on a circle around the centre, count x side x side: radius an eighth of the side, with sharp edges."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    angles = 2 * math.pi * torch.arange(count)[:, None, None] / count
    distance = torch.hypot(x - 0.5 - 0.3 * angles.cos(), y - 0.5 - 0.3 * angles.sin())
    return (side * (0.125 - distance) * 40).clamp(-20, 20)


def ladder(bench: Bench, size: Size, folder: Path) -> Ladder:
    """Return the ways, the original's first, and the work around the networks as a note. What compiles comes last: time may not last for it."""
    full = size == "full"
    side = 1024 if full else TINY_SIDE
    many, few = (32, 16) if full else (8, 4)
    section = SamSegmentation(model="sam", points_per_side=few)
    usual = usual_batch(SamSegmentation, size)
    counts = (1, 8, usual) if full else (1, usual)
    photo = _photo(side)
    views = cut(photo, side, 0)
    model = build_sam(size=size)
    torch.save(model.state_dict(), folder / "sam.pth")
    precision = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    networks = load(folder / "sam.pth", bench.device, precision)
    _force(networks.decoder, "score_head", "mask_heads", "upscaling")
    ours = Generator(networks)
    original = model.to(bench.device).requires_grad_(requires_grad=False)
    _force(original.mask_decoder, "iou_prediction_head", "output_hypernetworks_mlps", "output_upscaling")

    def flops(points: int) -> float | None:
        return ENCODER + points**2 * POINT if full else None

    def run(count: int, points: int) -> Any:
        grid = Grid(points, section.min_predicted_iou, section.min_stability, section.max_overlap)
        return ours.everything([views] * count, grid)

    parts = {"encoder": networks.encoder, "decoder": networks.decoder}
    ways = _original(original, np.asarray(photo), many, few, flops)
    ways += [
        Way(
            name=f"ours, {few}² points, batch of {count}",
            items=count,
            do=partial(run, count, few),
            settings=set_by(count, usual),
            flops=flops(few),
            parts=parts if count == usual else {},
        )
        for count in counts
    ]
    ways += [
        Way(
            name=f"ours, {few}² points, batch of {usual}, {4 * generation.POINTS} points decoded together",
            items=usual,
            do=partial(run, usual, few),
            within=partial(mock.patch.object, generation, "POINTS", 4 * generation.POINTS),
            flops=flops(few),
        ),
        Way(
            name=f"ours, {many}² points, batch of {usual}",
            items=usual,
            do=partial(run, usual, many),
            settings=set_by(usual, usual, f"points_per_side: {many}"),
            flops=flops(many),
        ),
        Way(
            name=f"ours, {few}² points, batch of {usual}, encoder compiled",
            items=usual,
            do=partial(run, usual, few),
            within=partial(compiled, networks.encoder),
            settings=set_by(usual, usual, "compile: true"),
            flops=flops(few),
        ),
    ]
    return Ladder(ways=ways, note=lambda rate: _around(rate, ours, photo))


def _original(model: Any, pixels: np.ndarray, many: int, few: int, flops: Callable[[int], float | None]) -> list[Way]:
    from segment_anything import SamAutomaticMaskGenerator  # noqa: PLC0415 - heavy

    parts = {"encoder": model.image_encoder, "decoder": model.mask_decoder}

    def way(name: str, points: int, *, half: bool = False, **options: Any) -> Way:
        generator = SamAutomaticMaskGenerator(model, points_per_side=points, points_per_batch=64)
        autocast = partial(torch.autocast, model.device.type, torch.float16, enabled=half)
        return Way(
            name=name, items=1, do=lambda: generator.generate(pixels), within=autocast, flops=flops(points), **options
        )

    return [
        way(f"original: {many}² points, one photo, float32", many, parts=parts),
        way(f"original in float16 (autocast), {many}² points", many, half=True),
        way(f"original in float16 (autocast), {few}² points", few, half=True),
    ]


def _force(decoder: Any, scores: str, heads: str, layers: str) -> None:
    """Make a decoder score by place and draw discs; the names are those of its head for quality, its heads for masks and its last layers."""
    count = len(getattr(decoder, heads))
    setattr(decoder, scores, Scores(count))
    setattr(decoder, heads, torch.nn.ModuleList(Pick(head) for head in getattr(decoder, heads)))
    setattr(decoder, layers, Discs(getattr(decoder, layers)))


def _photo(side: int) -> Image.Image:
    """Return a photo whose product is where the first disc is, on a backdrop with a camera's noise."""
    photo = Image.new("RGB", (side, side), (225, 225, 228))
    left, top, right, bottom = (round(part * side) for part in (0.675, 0.375, 0.925, 0.625))
    ImageDraw.Draw(photo).ellipse((left, top, right, bottom), fill=(160, 60, 50))
    noise = np.random.default_rng(0).normal(0, 3, (side, side, 3))
    return Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8))


def _around(rate: float, generator: Generator, photo: Image.Image) -> str:
    """Tell what of the CPU a GPU at `rate` photos per second needs for the work around the networks, measured here on one core."""
    section = SamSegmentation(model="sam", prior=False)
    model = SamModel(section, Path(), max_bytes=50_000_000, max_pixels=64_000_000)
    model._generator = generator  # noqa: SLF001 - without reading the weights again
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    work = Work(key="photo.jpg", recipe=Recipe(segmentation=section), source=file.getvalue())
    masks = model.infer([model.prepare(work)])[0]
    start = time.process_time()
    for _ in range(ROUNDS):
        model.finish(work, model.prepare(work), masks)
    around = (time.process_time() - start) / ROUNDS
    return (
        f"Not in these rates: {around:.2f} s of a core per photo of {photo.width}² for decoding, choice, edges and PNG (measured here), and "
        f"{PRIOR_SECONDS} s for the saliency prior. At {rate:.1f} images/s that is {rate * around:.0f} cores, and "
        f"{rate * (around + PRIOR_SECONDS):.0f} with the prior (`prior: true`, the default)."
    )
