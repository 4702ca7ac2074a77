"""Diffusion: from one picture at a time to batches, at 512² and 25 steps."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench.ladder.timing import compiled
from bench.ladder.ways import Ladder, Way, set_by, usual_batch
from shared.recipe import DiffusionBackground
from workers.inpainting.diffusion.engine import Engine, Request, load_engine, scheduler_for
from workers.inpainting.diffusion.presets import Settings, settings
from workers.random_models.diffusion import save_inpainting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bench.ladder.timing import Bench
    from workers.random_models.diffusion import Size

PROMPT = "a product photo, light grey smooth background, soft studio light, realistic"
NETWORK, AUTOENCODER = 0.80e12, 3.6e12
"""FLOPs at 512²: of the U-Net for one sample and step, and of the autoencoder for one picture, in and out."""


def ladder(bench: Bench, size: Size, folder: Path) -> Ladder:
    """Return the ways, one picture at a time first, then what is likeliest to be fast: time may not last for all."""
    full = size == "full"
    side, steps = (512, 25) if full else (64, 2)
    saved = save_inpainting(folder / "inpainting", size=size, dtype=bench.dtype)
    section = DiffusionBackground(
        model="diffusion", weights=str(saved), resolution=side, steps=steps, scheduler="dpm", guidance=7.5
    )
    usual = usual_batch(DiffusionBackground, size)
    engine = load_engine(saved, None, section, bench.device, bench.dtype)
    assert isinstance(engine, Engine)
    pipe = engine._pipe  # noqa: SLF001 - the library's own call is the baseline, and its modules are the parts
    chosen = settings(section, engine.native)
    few = settings(
        section.model_copy(update={"lora": "lcm-lora-sd15", "scheduler": None, "steps": None, "guidance": None}),
        engine.native,
    )
    requests = [_request(side, seed) for seed in range(2 * usual)]
    parts = {
        "text": pipe.text_encoder,
        "VAE encode": pipe.vae.encoder,
        "U-Net": pipe.unet,
        "VAE decode": pipe.vae.decoder,
    }

    def way(name: str, count: int = usual, how: Settings = chosen, **options: Any) -> Way:
        return Way(
            name=f"{name}, batch of {count}",
            items=count,
            do=lambda: engine.generate(requests[:count], how),
            flops=_flops(how) if full else None,
            **options,
        )

    plain = partial(_layout, pipe, torch.contiguous_format)
    fused = "fused projections for queries, keys and values"
    ways = [
        Way(
            name=f"one at a time through the library, {steps} steps, {bench.dtype_name}",
            items=1,
            do=partial(_alone, engine, requests[0], chosen),
            within=plain,
            flops=_flops(chosen) if full else None,
            parts=parts,
        ),
        way("ours", 1, settings=set_by(1, usual)),
        way("ours", usual // 2, settings=set_by(usual // 2, usual)),
        way("ours", settings=set_by(usual, usual), parts=parts),
        way(
            "ours, U-Net compiled", within=partial(compiled, pipe.unet), settings=set_by(usual, usual, "compile: true")
        ),
        way(
            "ours, U-Net and VAE decoder compiled",
            within=lambda: _both(compiled(pipe.unet), compiled(pipe.vae.decoder)),
        ),
        way("ours without channels_last", within=plain),
        way("ours, cudnn.benchmark", within=partial(torch.backends.cudnn.flags, enabled=True, benchmark=True)),
        way(f"ours, {fused}", within=partial(_fused, pipe.unet)),
        way("ours", 2 * usual),
        # A fused LoRA changes what the weights are, and speed does not depend on that.
        way(f"as with an LCM-LoRA, {few.steps} steps: other pictures, of lower quality", how=few),
        way(
            "ours, U-Net compiled with max-autotune-no-cudagraphs",
            within=partial(compiled, pipe.unet, mode="max-autotune-no-cudagraphs"),
        ),
    ]
    return Ladder(ways=ways)


def _alone(engine: Engine, request: Request, how: Settings) -> Any:
    pipe = engine._pipe  # noqa: SLF001 - as above
    pipe.scheduler = scheduler_for(how.scheduler, engine._published)  # noqa: SLF001 - likewise
    height, width = request.mask.shape
    return pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=Image.fromarray(request.image),
        mask_image=Image.fromarray((255 * request.mask).astype(np.uint8)),
        height=height,
        width=width,
        num_inference_steps=how.steps,
        guidance_scale=how.guidance,
        strength=1.0,
        generator=torch.Generator().manual_seed(0),
    )


def _flops(how: Settings) -> float:
    """Return what one picture needs; guidance runs the network for the prompt and for the negative one."""
    return how.steps * (2 if how.guidance > 1 else 1) * NETWORK + AUTOENCODER


def _request(side: int, seed: int) -> Request:
    mask = np.ones((side, side), np.float32)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = 0
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    return Request(noise, mask, PROMPT, "text, people", seed)


@contextmanager
def _layout(pipe: Any, layout: torch.memory_format) -> Iterator[None]:
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=layout)
    try:
        yield
    finally:
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)


@contextmanager
def _fused(network: Any) -> Iterator[None]:
    network.fuse_qkv_projections()
    try:
        yield
    finally:
        network.unfuse_qkv_projections()


@contextmanager
def _both(*contexts: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
