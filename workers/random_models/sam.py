"""Segment Anything, built of segment-anything's own modules."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from workers.random_models.diffusion import Size

TINY_SIDE = 128
"""Pixels of the tiny encoder's square input."""


def build_sam(*, size: Size = "tiny", seed: int = 0) -> Any:
    """Build a `Sam`, in evaluation mode; full size is ViT-H's."""
    from segment_anything import sam_model_registry  # noqa: PLC0415 - heavy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = sam_model_registry["vit_h"]() if size == "full" else _tiny()
        with torch.no_grad():
            for weight in sam.parameters():
                if not weight.any():  # positions and biases begin at zero, and would hide a mistake in their use
                    weight.normal_(0, 0.2)
    return sam.eval()


def save_sam(path: Path, *, size: Size = "tiny", seed: int = 0) -> Path:
    """Save a checkpoint in the published layout."""
    torch.save(build_sam(size=size, seed=seed).state_dict(), path)
    return path


def _tiny() -> Any:
    from segment_anything import modeling  # noqa: PLC0415 - heavy

    patch, width, channels = 16, 32, 32
    grid = TINY_SIDE // patch
    return modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=TINY_SIDE,
            patch_size=patch,
            embed_dim=width,
            depth=3,
            num_heads=4,
            out_chans=channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        modeling.PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(TINY_SIDE, TINY_SIDE),
            mask_in_chans=16,
        ),
        modeling.MaskDecoder(
            transformer_dim=channels,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=8, mlp_dim=64),
            iou_head_hidden_dim=32,
        ),
    )
