"""A tiny Segment Anything that was taught, in seconds, to draw discs around its points: masks of random weights cover everything."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional

from workers.random_models.sam import TINY_SIDE, build_sam

RADII = 0.1, 0.18, 0.3
"""Of the three answers' discs, in parts of the encoder's side."""


@cache
def taught_sam() -> Any:
    """Teach the prompt encoder and the decoder; the image encoder stays random but for its positions, which tell places apart."""
    sam = build_sam()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        grid = sam.image_encoder.pos_embed.shape[1]
        line = torch.linspace(-1, 1, grid)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1) @ torch.randn(2, 16) * 2
        sam.image_encoder.pos_embed.data = 3 * torch.cat([places.sin(), places.cos()], -1)[None]
        sam.requires_grad_(requires_grad=False)
        picture = sam.image_encoder(0.7 * torch.randn(1, 3, TINY_SIDE, TINY_SIDE))
        learning = [*sam.mask_decoder.parameters(), *sam.prompt_encoder.parameters()]
        for weight in learning:
            weight.requires_grad_(requires_grad=True)
        optimizer = torch.optim.Adam(learning, 5e-3)
        for _ in range(220):
            optimizer.zero_grad()
            _loss(sam, picture).backward()
            optimizer.step()
    with torch.no_grad():  # steeper edges, as a network taught for longer has them
        for head in sam.mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight *= 4
            head.layers[-1].bias *= 4
    return sam.eval().requires_grad_(requires_grad=False)


def _loss(sam: Any, picture: torch.Tensor, count: int = 16) -> torch.Tensor:
    points = torch.rand(count, 1, 2) * TINY_SIDE
    tokens, dense = sam.prompt_encoder((points, torch.ones(count, 1)), None, None)
    drawn, scores = sam.mask_decoder(picture, sam.prompt_encoder.get_dense_pe(), tokens, dense, multimask_output=True)
    side = drawn.shape[-1]
    pixels = (torch.arange(side) + 0.5) / side * TINY_SIDE
    distance = (pixels[:, None] - points[:, :, None, 1:]) ** 2 + (pixels - points[:, :, None, :1]) ** 2
    wanted = (distance < (torch.tensor(RADII)[:, None, None] * TINY_SIDE) ** 2).float()
    inside = drawn.detach() > 0
    overlap = (inside & (wanted > 0)).sum((2, 3)) / (inside | (wanted > 0)).sum((2, 3))
    drawing = functional.binary_cross_entropy_with_logits(drawn, wanted, pos_weight=torch.tensor(3.0))
    return drawing + functional.mse_loss(scores, overlap)
