"""Segment Anything's three networks out of a checkpoint, whatever their size."""

from __future__ import annotations

import pickle
import re
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    TwoWayTransformer,
)

from shared.errors import ModelCorruptError, ModelMissingError
from shared.models.catalogue import published_sha256
from shared.models.wheels import digest
from workers.segmentation.sam.decoder import Decoder
from workers.segmentation.sam.encoder import Encoder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SUFFIXES = ".pth", ".pt", ".safetensors"
"""Of a checkpoint's file name."""
DECODER_HEADS = 8
"""Attention heads of the mask decoder: the one size that no shape in a checkpoint tells."""

_VARIANTS = {(1280, 32): "vit_h", (1024, 24): "vit_l", (768, 12): "vit_b"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a checkpoint's shapes tell of the networks in it."""

    side: int
    """Pixels of the encoder's square input."""
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    window: int
    """Patches; 0 where every block looks at the whole picture."""
    overall: tuple[int, ...]
    """Blocks that look at the whole picture."""
    channels: int
    """Of the picture's embedding."""
    mask_channels: int
    outputs: int
    """Masks per prompt, without the single one."""
    layers: int
    """Of the decoder's transformer."""
    decoder_mlp: int
    reduction: int
    """Of the channels inside the decoder's attention."""
    score_layers: int
    score_width: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Sizes:
        """Read the sizes off the shapes. Raises KeyError and ValueError for anything but a Segment Anything checkpoint."""
        vit, transformer, score = "image_encoder", "mask_decoder.transformer", "mask_decoder.iou_prediction_head"
        width, _, patch, _ = weights[f"{vit}.patch_embed.proj.weight"].shape
        grid = weights[f"{vit}.pos_embed"].shape[1]
        depth = _count(weights, rf"{vit}\.blocks\.(\d+)\.")
        reaches = [(len(weights[f"{vit}.blocks.{block}.attn.rel_pos_h"]) + 1) // 2 for block in range(depth)]
        window = min(reaches)
        channels = weights[f"{vit}.neck.0.weight"].shape[0]
        cross = weights[f"{transformer}.layers.0.cross_attn_token_to_image.q_proj.weight"]
        return cls(
            side=grid * patch,
            patch=patch,
            width=width,
            depth=depth,
            heads=width // weights[f"{vit}.blocks.0.attn.rel_pos_h"].shape[1],
            mlp=weights[f"{vit}.blocks.0.mlp.lin1.weight"].shape[0],
            window=window if window < grid else 0,
            overall=tuple(block for block, reach in enumerate(reaches) if reach == grid),
            channels=channels,
            mask_channels=weights["prompt_encoder.mask_downscaling.3.weight"].shape[0],
            outputs=len(weights["mask_decoder.mask_tokens.weight"]) - 1,
            layers=_count(weights, rf"{transformer}\.layers\.(\d+)\."),
            decoder_mlp=weights[f"{transformer}.layers.0.mlp.lin1.weight"].shape[0],
            reduction=channels // cross.shape[0],
            score_layers=_count(weights, rf"{score}\.layers\.(\d+)\."),
            score_width=weights[f"{score}.layers.0.weight"].shape[0],
        )

    @property
    def variant(self) -> str:
        """Return the published name, or `vit` with the width and the depth of another size."""
        return _VARIANTS.get((self.width, self.depth), f"vit_{self.width}x{self.depth}")


@dataclass(frozen=True, slots=True)
class Networks:
    """The loaded networks, on their device, ready for inference."""

    encoder: Encoder
    prompts: PromptEncoder
    decoder: Decoder
    sizes: Sizes
    device: torch.device


def load(path: Path, device: torch.device, precision: torch.dtype, *, compile: bool = False) -> Networks:  # noqa: A002 - the recipe's word
    """Load a checkpoint in segment-anything's own layout; encoder and decoder compute in `precision`.

    With `compile` the encoder, which is most of the work, is compiled at its first photos. `path` is the file, or a folder that holds just one. Raises `ModelMissingError`, `ModelCorruptError`.
    """
    file = _file(path)
    _check_published(file)
    weights = _read(file)
    if any(name.startswith("vision_encoder.") for name in weights):
        msg = f"{file} is in transformers' layout: give a checkpoint in segment-anything's own, such as sam-vit-h"
        raise ModelCorruptError(msg)
    try:
        sizes = Sizes.of(weights)
        vit, prompts, decoder = build(sizes)
        for name, network in (("image_encoder", vit), ("prompt_encoder", prompts), ("mask_decoder", decoder)):
            own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
            network.load_state_dict(own, assign=True)
    except (KeyError, ValueError, RuntimeError, AssertionError) as error:
        # The library's own checks of sizes are assertions; its complaints about a checkpoint fill pages.
        reason = str(error).partition("\n")[0][:200]
        msg = f"{file} holds no Segment Anything of kind vit_h, vit_l or vit_b ({reason}): give another checkpoint"
        raise ModelCorruptError(msg) from None
    # Prompts stay in single precision: half would move a point by a pixel.
    vit, prompts, decoder = (part.float().to(device).eval().requires_grad_(False) for part in (vit, prompts, decoder))
    encoder = Encoder(vit, precision)
    if compile:
        encoder.compile()
    return Networks(encoder, prompts, Decoder(decoder, precision), sizes, device)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Count the numbered parts whose names match."""
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    if len(files) != 1:
        found = f"{len(files)} checkpoints" if files else "no checkpoint"
        raise ModelMissingError(f"{path} holds {found} ({', '.join(SUFFIXES)}): give the path of one file")
    return files[0]


def _check_published(file: Path) -> None:
    """Make sure that a file with the name of a published one has its content, wherever it came from."""
    sha256 = published_sha256(file.name)
    if sha256 is None:
        return
    try:
        status = file.stat()
        found = digest(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelMissingError(f"cannot read {file}: {error.strerror}") from None
    if found != sha256:
        msg = f"{file} is not the published file (its SHA-256 is {found}): fetch it again, or give yours another name"
        raise ModelCorruptError(msg)


def _read(file: Path) -> Mapping[str, Tensor]:
    """Read the weights without running any code that the file may hold."""
    try:
        file.open("rb").close()
    except OSError as error:
        raise ModelMissingError(f"cannot read {file}: {error.strerror}") from None
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        struct.error,
    ) as error:
        # Whatever the two readers meet in a file that can be opened, down to offsets beyond its end.
        reason = str(error).partition("\n")[0][:200]
        raise ModelCorruptError(f"{file} cannot be read as a checkpoint ({reason}): fetch it again") from None
    if not isinstance(weights, dict) or not all(torch.is_tensor(value) for value in weights.values()):
        raise ModelCorruptError(f"{file} is not a plain table of weights: give a checkpoint in the published layout")
    return cast("Mapping[str, Tensor]", weights)


def build(sizes: Sizes) -> tuple[ImageEncoderViT, PromptEncoder, MaskDecoder]:
    """Make the networks without memory or first values of their own: the checkpoint's take their place."""
    grid = sizes.side // sizes.patch
    with torch.device("meta"):
        encoder = ImageEncoderViT(
            img_size=sizes.side,
            patch_size=sizes.patch,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.heads,
            mlp_ratio=sizes.mlp / sizes.width,
            out_chans=sizes.channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=sizes.window,
            global_attn_indexes=sizes.overall,
        )
        prompts = PromptEncoder(
            embed_dim=sizes.channels,
            image_embedding_size=(grid, grid),
            input_image_size=(sizes.side, sizes.side),
            mask_in_chans=sizes.mask_channels,
        )
        decoder = MaskDecoder(
            num_multimask_outputs=sizes.outputs,
            transformer=TwoWayTransformer(
                depth=sizes.layers,
                embedding_dim=sizes.channels,
                mlp_dim=sizes.decoder_mlp,
                num_heads=DECODER_HEADS,
                attention_downsample_rate=sizes.reduction,
            ),
            transformer_dim=sizes.channels,
            iou_head_depth=sizes.score_layers,
            iou_head_hidden_dim=sizes.score_width,
        )
    return encoder, prompts, decoder
