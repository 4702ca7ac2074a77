"""What each preset was made for: its native size, and settings that suit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from shared.recipe import LCM_LORAS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.recipe import DiffusionBackground


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings that a recipe leaves open."""

    resolution: int
    """Side of the square whose area the model was trained to fill, in pixels."""
    scheduler: str = "dpm"
    steps: int = 25
    guidance: float = 7.5


PRESETS: Mapping[str, Preset] = {
    "dreamshaper-8": Preset(512),
    "sd15": Preset(512),
    "sd2": Preset(512),
    "sdxl": Preset(1024, guidance=7.0),
    # Its network learned the variance that only its own scheduler (DDPM) makes use of; 50 and 4 are the library's example and default.
    "kandinsky-2.2": Preset(512, scheduler="published", steps=50, guidance=4.0),
}
"""All of them were published in half precision, or are known to run in it; only SDXL's autoencoder overflows, and is seen to."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one batch is generated: a recipe's settings with the preset's in the gaps."""

    resolution: int | Literal["native"]
    scheduler: str
    steps: int
    guidance: float
    strength: float


def settings(section: DiffusionBackground, native: int) -> Settings:
    """Fill a recipe's gaps; `native` is the resolution of a model that is no preset, from its own configuration."""
    preset = PRESETS.get(section.weights, Preset(native, scheduler="published"))
    if section.lora in LCM_LORAS:
        # Guidance above 1 is what lets the negative prompt count.
        preset = replace(preset, scheduler="lcm", steps=6, guidance=1.5)
    return Settings(
        resolution=section.resolution or preset.resolution,
        scheduler=section.scheduler or preset.scheduler,
        steps=section.steps or preset.steps,
        guidance=preset.guidance if section.guidance is None else section.guidance,
        strength=section.strength,
    )


RATIOS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
"""Width by height of the buckets: few, so that batches fill."""
LATENT = 8
"""Pixels to a side of one latent."""
UNIT = 64
"""Pixels that both sides are multiples of: latents of eight pixels, halved three times. Other sizes are padded inside the network, or refused."""


def bucket(width: int, height: int, resolution: int | Literal["native"]) -> tuple[int, int]:
    """Return the width and height to generate for a frame: the nearest of `RATIOS`, of about `resolution` squared pixels.

    `native` gives the frame's own size, down to multiples of `LATENT` and at least `UNIT`.
    """
    if resolution == "native":
        return max(UNIT, width - width % LATENT), max(UNIT, height - height % LATENT)
    ratio = min(RATIOS, key=lambda ratio: max(ratio * height / width, width / (ratio * height)))
    sides = (resolution * ratio**0.5, resolution / ratio**0.5)
    return max(UNIT, round(sides[0] / UNIT) * UNIT), max(UNIT, round(sides[1] / UNIT) * UNIT)
