"""How many workers so many photos a second need, and what a thousand photos cost, at given speeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from shared.keys import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shared.keys import StageName

HOUR = 3600
MEASURED: dict[StageName, tuple[str, ...]] = {
    "segmentation": ("sam_images_per_second",),
    "inpainting": ("inpaint_images_per_second",),
    "captioning": ("caption_captions_per_second", "translate_sentences_per_second"),
}
"""What `bench.models` calls the rates of the models that each stage runs one after the other."""


def read_speeds(file: str | Path) -> dict[StageName, float]:
    """Read images per second of each stage that `bench.models` has measured: from its last line, or the file of its `--out`.

    Raises `ValueError` for what is neither, and for figures of the tiny size, which say nothing of real models.
    """
    lines = Path(file).read_text(encoding="utf-8").strip().splitlines() or [""]
    try:
        figures = json.loads(lines[-1].strip("`"))
        size = figures["size"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: its last line is none of bench.models") from None
    if size != "full":
        raise ValueError(f"{file}: figures of size {size}: measure with --size full")
    rates = {stage: [figures.get(name) for name in names] for stage, names in MEASURED.items()}
    return {stage: 1 / sum(1 / rate for rate in found) for stage, found in rates.items() if all(found)}


def workers(rate: float, speed: Mapping[StageName, float]) -> dict[StageName, int]:
    """Return how many workers of each stage `rate` photos per second need."""
    return {stage: math.ceil(rate / speed[stage]) for stage in STAGES}


def table(rates: Sequence[float], speed: Mapping[StageName, float], price: float) -> Iterator[str]:
    """Write a table in Markdown; `speed` is images per second of one worker, which has a GPU at `price` an hour."""
    yield f"| photos/s | {' | '.join(STAGES)} | GPUs | busy | per 1,000 photos |"
    yield "|" + "---|" * (len(STAGES) + 4)
    work = sum(1 / speed[stage] for stage in STAGES)
    for rate in rates:
        each = workers(rate, speed)
        gpus = sum(each.values())
        cells = [f"{rate:g}", *map(str, each.values()), str(gpus), f"{rate * work / gpus:.0%}"]
        yield f"| {' | '.join(cells)} | {1000 / rate * gpus * price / HOUR:.2f} |"
    yield f"| all busy | | | | | 100% | {1000 * work * price / HOUR:.2f} |"
