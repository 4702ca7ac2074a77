"""What the tests of written captions share: work to do, and models of random weights with something wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from shared.pictures import encode_png
from workers.stage import Work

if TYPE_CHECKING:
    from pathlib import Path

    from shared.recipe import Recipe

LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000}


def work(recipe: Recipe, seed: int = 0, *, alpha: bool = False, fields: dict[str, Any] | None = None) -> Work:
    """Return an item whose picture is noise of a `seed`."""
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 40, 4 if alpha else 3), np.uint8)
    data = encode_png(Image.fromarray(pixels))
    return Work("a.png", recipe, data, {"image": data, "cutout": data}, fields=fields or {})


def damage(folder: Path, copy: Path, name: str = "", change: dict[str, Any] | None = None) -> Path:
    """Copy a model without one of its weights, or with its configuration changed."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    if name:
        weights = load_file(copy / "model.safetensors")
        found = next(key for key in weights if key.endswith(name))
        del weights[found]
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
    if change:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | change))
    return copy


def cut_short(folder: Path, copy: Path) -> Path:
    """Copy a model as an interrupted copy leaves its weights."""
    damage(folder, copy)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return copy
