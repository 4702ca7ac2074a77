"""Tiny inpainting pipelines of the real classes with random weights, and what is asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shared.recipe import DiffusionBackground
from workers.devices import dtype_for
from workers.inpainting.diffusion.engine import Engine, KandinskyEngine, Request, load_engine
from workers.inpainting.diffusion.presets import Settings, settings
from workers.random_models.diffusion import save_inpainting, save_inpainting_xl, save_kandinsky

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE = 64
CPU = torch.device("cpu")
SAVE: dict[str, Callable[[Path], Path]] = {
    "9 channels": save_inpainting,
    "4 channels": lambda folder: save_inpainting(folder, channels=4),
    "xl": save_inpainting_xl,
    "xl 4 channels": lambda folder: save_inpainting_xl(folder, channels=4),
    "kandinsky": save_kandinsky,
}


def save_all(root: Path, *names: str) -> dict[str, Path]:
    """Save the named pipelines, or all, in the hub's layout."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return {name: SAVE[name](root / name.replace(" ", "-")) for name in names or SAVE}


def section(folder: Path, **options: Any) -> DiffusionBackground:
    return DiffusionBackground(model="diffusion", weights=str(folder), **{"resolution": SIDE, "steps": 3, **options})


def engine(folder: Path, **options: Any) -> tuple[Engine | KandinskyEngine, Settings]:
    """Load a pipeline the way the worker does."""
    chosen = section(folder, **options)
    prior = folder / "prior"
    loaded = load_engine(folder, prior if prior.is_dir() else None, chosen, CPU, dtype_for(chosen.precision, CPU))
    return loaded, settings(chosen, loaded.native)


def request(seed: int, prompt: str = "a red shoe", negative: str = "text") -> Request:
    """Ask for a background around a rectangle in noise; its place depends on the seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    mask = np.ones((SIDE, SIDE), np.float32)
    mask[16:48, 8 + seed : 32 + seed] = 0
    return Request(noise, mask, prompt, negative, seed)


def levels(one: np.ndarray, two: np.ndarray) -> int:
    """Return the largest difference between two pictures, in levels of 255."""
    return int(np.abs(one.astype(int) - two.astype(int)).max())
