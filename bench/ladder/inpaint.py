"""Diffusion: from one picture at a time to batches, at 512² and 25 steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench.ladder.timing import Bench, Rung, count_flops
from shared.recipe import DiffusionBackground
from workers.inpainting.diffusion.engine import Engine, Request, load_engine, scheduler_for
from workers.inpainting.diffusion.presets import settings
from workers.random_models.diffusion import save_inpainting

if TYPE_CHECKING:
    from pathlib import Path

    from workers.random_models.diffusion import Size

PROMPT = "a product photo, light grey smooth background, soft studio light, realistic"


def ladder(bench: Bench, size: Size, folder: Path, batch: int) -> list[Rung]:
    """Measure the rungs, one at a time first."""
    full = size == "full"
    side, steps = (512, 25) if full else (64, 4)
    saved = save_inpainting(folder / "inpainting", size=size, dtype=bench.dtype)
    section = DiffusionBackground(
        model="diffusion", weights=str(saved), resolution=side, steps=steps, scheduler="dpm", guidance=7.5
    )
    engine = load_engine(saved, None, section, bench.device, bench.dtype)
    assert isinstance(engine, Engine)
    chosen = settings(section, engine.native)
    requests = [_request(side, seed) for seed in range(batch)]
    pipe = engine._pipe  # noqa: SLF001 - the library's own call is the baseline
    published = engine._published  # noqa: SLF001 - likewise

    def alone() -> Any:
        pipe.scheduler = scheduler_for("dpm", published)
        one = requests[0]
        return pipe(
            prompt=one.prompt,
            negative_prompt=one.negative_prompt,
            image=Image.fromarray(one.image),
            mask_image=Image.fromarray((255 * one.mask).astype(np.uint8)),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=7.5,
            strength=1.0,
            generator=torch.Generator().manual_seed(0),
        )

    rungs = [bench.measure(f"one at a time through the library, {steps} steps, {_name(bench)}", 1, alone)]
    for count in sorted({1, max(2, batch // 2), batch}):

        def run(count: int = count) -> Any:
            return engine.generate(requests[:count], chosen)

        flops = count_flops(run, count)
        rungs.append(bench.measure(f"ours, batch of {count}", count, run, flops=flops))
    if bench.device.type == "cuda":
        compiled = load_engine(saved, None, section.model_copy(update={"compile": True}), bench.device, bench.dtype)
        rungs.append(
            bench.measure(
                f"ours, compiled, batch of {batch}",
                batch,
                lambda: compiled.generate(requests, chosen),
                flops=rungs[-1].flops,
            )
        )
    few = settings(
        section.model_copy(update={"lora": "lcm-lora-sd15", "scheduler": None, "steps": None, "guidance": None}),
        engine.native,
    )
    # A fused LoRA changes what the weights are, and speed does not depend on that.
    fewest = bench.measure(
        f"as with an LCM-LoRA, {few.steps} steps, batch of {batch}: other pictures, of lower quality",
        batch,
        lambda: engine.generate(requests, few),
    )
    return [*rungs, replace(fewest, same=False)]


def _request(side: int, seed: int) -> Request:
    mask = np.ones((side, side), np.float32)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = 0
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    return Request(noise, mask, PROMPT, "text, people", seed)


def _name(bench: Bench) -> str:
    return str(bench.dtype).removeprefix("torch.")
