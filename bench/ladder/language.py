"""Captions and translations: from one at a time to batches. The number of tokens is forced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from bench.ladder.timing import Bench, Rung, count_flops
from shared.recipe import Blip2Caption
from workers.captioning import translation
from workers.captioning.blip2 import Blip2Model, read_blip2, read_processors
from workers.captioning.translation import Translator
from workers.random_models.language import save_blip2, save_marian

if TYPE_CHECKING:
    from pathlib import Path

    from workers.random_models.diffusion import Size

TOKENS = 20
SENTENCE = "a pair of white shoes with red soles on a light grey background"


def captions(bench: Bench, size: Size, folder: Path, batch: int) -> list[Rung]:
    """Measure BLIP-2 with OPT, `TOKENS` tokens a caption."""
    saved = save_blip2(folder / "blip2", size=size, dtype=bench.dtype, device=str(bench.device))
    section = Blip2Caption(model="blip2", weights=str(saved), languages=("en",), max_tokens=TOKENS)
    model = Blip2Model(section, folder, max_bytes=1, max_pixels=1)
    model._device = bench.device  # noqa: SLF001 - without the warm-up of `load`, whose tokens are not forced
    model._pictures, model._tokenizer = read_processors(saved, str(saved))  # noqa: SLF001 - as above
    model._network = read_blip2(saved, section, bench.device, bench.dtype)  # noqa: SLF001 - as above
    side = model._network.config.vision_config.image_size  # noqa: SLF001 - as above
    pixels = [np.random.default_rng(seed).normal(size=(3, side, side)).astype(np.float32) for seed in range(batch)]
    forced = {"min_new_tokens": TOKENS}
    rungs = []
    for count in sorted({1, max(2, batch // 4), batch}):

        def run(count: int = count) -> Any:
            return model._describe(pixels[:count], section, forced)  # noqa: SLF001 - without the guards, which would ask again

        name = "original: one at a time" if count == 1 else f"ours, batch of {count}"
        flops = count_flops(run, count) if count == batch else 0.0
        rungs.append(bench.measure(f"{name}, {TOKENS} tokens", count, run, flops=flops))
    return rungs


def translations(bench: Bench, size: Size, folder: Path, batch: int) -> list[Rung]:
    """Measure opus-mt, `TOKENS` tokens a sentence."""
    saved = save_marian(folder / "marian", size=size)
    tokenizer = transformers.MarianTokenizer.from_pretrained(saved)
    single = transformers.MarianMTModel.from_pretrained(saved).to(bench.device).eval().requires_grad_(False)
    asked = tokenizer([SENTENCE], return_tensors="pt").to(bench.device)

    def original() -> Any:
        with torch.inference_mode():
            return single.generate(**asked, num_beams=4, min_new_tokens=TOKENS, max_new_tokens=TOKENS)

    rungs = [bench.measure(f"original: one at a time, 4 beams, float32, {TOKENS} tokens", 1, original)]
    translation.MAX_TOKENS = TOKENS
    translator = Translator(saved, str(saved), "ru", bench.device, bench.dtype)
    forced = {"num_beams": 1, "min_new_tokens": TOKENS}
    for count in sorted({max(2, batch // 8), batch}):

        def run(count: int = count) -> Any:
            return translator._once([SENTENCE] * count, forced)  # noqa: SLF001 - without the guards, which would ask again

        flops = count_flops(run, count)
        rungs.append(bench.measure(f"ours, greedy, batch of {count}", count, run, flops=flops))
    return rungs
