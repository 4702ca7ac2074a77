"""Captions and translations: from one at a time to batches. The number of tokens is forced."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from bench.ladder.ways import Ladder, Way, set_by, usual_batch
from shared.recipe import Blip2Caption
from workers.captioning import translation
from workers.captioning.blip2 import Blip2Model, read_blip2, read_processors
from workers.captioning.translation import Translator
from workers.random_models.language import save_blip2, save_marian

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.ladder.timing import Bench
    from workers.random_models.diffusion import Size

TOKENS = 20
SENTENCE = "a pair of white shoes with red soles on a light grey background"
CAPTION = 0.8e12
"""FLOPs of BLIP-2 with OPT 2.7B for one caption."""
STATIC = {"cache_implementation": "static"}
"""A cache of fixed size, for which the library compiles its decoder on a GPU."""


def captions(bench: Bench, size: Size, folder: Path) -> Ladder:
    """Return the ways of BLIP-2 with OPT, `TOKENS` tokens a caption."""
    full = size == "full"
    saved = save_blip2(folder / "blip2", size=size, dtype=bench.dtype, device=str(bench.device))
    bench.free()  # of what it was built in
    section = Blip2Caption(model="blip2", weights=str(saved), languages=("en",), max_tokens=TOKENS)
    model = Blip2Model(section, folder, max_bytes=1, max_pixels=1)
    model._device = bench.device  # noqa: SLF001 - without the warm-up of `load`, whose tokens are not forced
    model._pictures, model._tokenizer = read_processors(saved, str(saved))  # noqa: SLF001 - as above
    network = model._network = read_blip2(saved, section, bench.device, bench.dtype)  # noqa: SLF001 - as above
    side = network.config.vision_config.image_size
    usual = usual_batch(Blip2Caption, size)
    large = 256 if full else usual
    batches = sorted({8, usual, 128, 256, 512}) if full else [usual]
    pixels = np.random.default_rng(0).normal(size=(max(batches), 3, side, side)).astype(np.float32)
    halves = pixels[:large].astype(np.float16 if bench.dtype == torch.float16 else np.float32)
    parts = {"ViT": network.vision_model, "Q-Former": network.qformer, "prefill/decode": network.language_model}

    def way(name: str, count: int = large, pictures: np.ndarray = pixels, **options: Any) -> Way:
        forced = {"min_new_tokens": TOKENS, **options.pop("generate", {})}
        return Way(
            name=f"{name}, {TOKENS} tokens",
            items=count,
            # Without the guards, which would ask again.
            do=lambda: model._describe(list(pictures[:count]), section, forced),  # noqa: SLF001 - as above
            flops=CAPTION if full else None,
            **options,
        )

    ways = [
        way(f"original: one at a time, {bench.dtype_name}", 1, parts=parts),
        *(
            way(
                f"ours, batch of {count}",
                count,
                settings=set_by(count, usual),
                parts=parts if count == usual else {},
            )
            for count in batches
        ),
        way(f"ours, TF32 for what stays in float32, batch of {large}", within=_tf32),
        way(f"ours, pixels in half precision, batch of {large}", pictures=halves),
        way(f"ours, static cache, batch of {large}", generate=STATIC),
    ]
    return Ladder(ways=ways)


def translations(bench: Bench, size: Size, folder: Path) -> Ladder:
    """Return the ways of opus-mt, `TOKENS` tokens a sentence."""
    full = size == "full"
    saved = save_marian(folder / "marian", size=size)
    tokenizer = transformers.MarianTokenizer.from_pretrained(saved)
    single = transformers.MarianMTModel.from_pretrained(saved).to(bench.device).eval().requires_grad_(False)
    asked = tokenizer([SENTENCE], return_tensors="pt").to(bench.device)
    translator = Translator(saved, str(saved), "ru", bench.device, bench.dtype)
    model = translator._model  # noqa: SLF001 - its modules are the parts
    # Translated together is what was described together.
    usual = usual_batch(Blip2Caption, size)
    large = 256 if full else usual
    batches = sorted({8, usual, 256, 512}) if full else [usual]

    def original() -> Any:
        with torch.inference_mode():
            return single.generate(**asked, num_beams=4, min_new_tokens=TOKENS, max_new_tokens=TOKENS)

    def run(count: int, options: dict[str, Any]) -> Any:
        forced = {"num_beams": 1, "min_new_tokens": TOKENS, **options}
        with torch.inference_mode():
            return translator._once([SENTENCE] * count, forced)  # noqa: SLF001 - without the guards, which would ask again

    def way(name: str, count: int, generate: dict[str, Any] | None = None, **options: Any) -> Way:
        return Way(
            name=f"{name}, batch of {count}, {TOKENS} tokens",
            items=count,
            do=partial(run, count, generate or {}),
            within=_short,
            **options,
        )

    ways = [
        Way(
            name=f"original: one at a time, 4 beams, float32, {TOKENS} tokens",
            items=1,
            do=original,
            parts=_parts(single),
        ),
        *(
            way("ours, greedy", count, settings=set_by(count, usual), parts=_parts(model) if count == usual else {})
            for count in batches
        ),
        way("ours, greedy, static cache", large, STATIC),
    ]
    return Ladder(ways=ways)


def _parts(model: Any) -> dict[str, Any]:
    return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}


@contextmanager
def _short() -> Iterator[None]:
    """End every translation after `TOKENS` tokens, as captions end long before the product's own limit."""
    before = translation.MAX_TOKENS
    translation.MAX_TOKENS = TOKENS
    try:
        yield
    finally:
        translation.MAX_TOKENS = before


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
