"""Ways of doing a stage's work, and what was measured of each."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from shared.recipe.section import ModelSection
    from workers.random_models.diffusion import Size

DEFAULTS = "the defaults"
"""What a way is set by that is the product as it comes."""
TINY_BATCH = 2
"""Items in a batch where tiny sizes are measured."""


def usual_batch(section: type[ModelSection], size: Size) -> int:
    """Return how many items the product as it comes hands to a model on a GPU; tiny sizes make do with fewer."""
    return (size == "full" and section.gpu_batch) or TINY_BATCH


def set_by(count: int, usual: int, *recipe: str) -> str | None:
    """Say what sets the product to batches of `count` and to some lines of a recipe. None where that is more than its `usual` batch, which is its largest."""
    if count > usual:
        return None
    parts = [f"`{line}`" for line in recipe]
    parts += [f"`VITRINA_MAX_BATCH={count}`"] if count < usual else []
    return ", ".join(parts) or DEFAULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of doing a stage's work, not yet measured."""

    name: str
    items: int
    """Photos, captions or sentences in one run."""
    do: Callable[[], Any]
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    """Sets up what only this way needs before the clock starts, and takes it back."""
    settings: str | None = None
    """What makes the product do it so. None for a way that is not ours: the original's, or a trial of what the product cannot be set to."""
    flops: float | None = None
    """What one item needs; None takes the ladder's count."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Modules by the name of their part, timed and counted once; under "a/b" the first call of a run is a, the others are b."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The ways of one stage, the original script's first."""

    ways: list[Way]
    note: Callable[[float], str] | None = None
    """What else belongs beside a rate (items per second) of our best way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A way with what was measured of it."""

    way: Way
    seconds: tuple[float, ...] = ()
    """Of each run; none where it could not be measured."""
    first_seconds: float = 0.0
    """Of the run before them: compiling, allocating, choosing kernels."""
    peak_bytes: int = 0
    """Largest memory allocated on the device; 0 on a CPU."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds per item by part."""
    counted_flops: float | None = None
    """Of one item."""
    lost: str = ""
    """Why it could not be measured."""

    @property
    def rate(self) -> float | None:
        """Items per second, by the median run."""
        return self.way.items / statistics.median(self.seconds) if self.seconds else None

    @property
    def worst(self) -> float:
        """Seconds that 95 % of the runs do not exceed."""
        return percentile(self.seconds, 0.95)


def percentile(values: tuple[float, ...], part: float) -> float:
    """Return the value that `part` (0 to 1) of the values do not exceed; of few values, the nearest one above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Results:
    """The measured ladder of one stage, and what it says."""

    rungs: list[Rung]
    peak: float
    """FLOP/s of the device at its best."""

    @property
    def best(self) -> Rung | None:
        """The fastest way that the product can be set to."""
        ours = [rung for rung in self.rungs if rung.way.settings and rung.rate]
        return max(ours, key=lambda rung: rung.rate or 0, default=None)

    def speedup(self, rung: Rung) -> float | None:
        """Return the rate over the original way's, which is the first rung's."""
        base = self.rungs[0].rate
        return rung.rate / base if rung.rate and base else None

    @property
    def counted(self) -> float | None:
        """FLOPs of one item, where they were counted."""
        return next((rung.counted_flops for rung in self.rungs if rung.way.settings and rung.counted_flops), None)

    def utilisation(self, rung: Rung) -> float | None:
        """Return the model FLOP utilisation, as a part of `peak`: what the work needs, whatever was done for it."""
        needed = rung.way.flops or self.counted
        return rung.rate * needed / self.peak if rung.rate and needed else None

    def summary(self, items: str) -> str:
        """Say in a line what our best way is."""
        best = self.best
        if best is None:
            return ""
        speedup, used = self.speedup(best), self.utilisation(best)
        told = [f"Ours at its best: {best.way.name}, set by {best.way.settings}: {best.rate:.2f} {items}/s"]
        told += [f"{speedup:.1f} times the original way"] if speedup else []
        told += [f"{100 * used:.1f} % of the device's best matrix product"] if used else []
        needs = [f"{best.way.flops / 1e12:.4g} T by the model's sizes"] if best.way.flops else []
        needs += [f"{self.counted / 1e12:.4g} T counted"] if self.counted else []
        return f"{', '.join(told)}. FLOPs of one: {', '.join(needs) or 'not counted'}."

    def table(self) -> list[str]:
        """Return the lines of a table in Markdown."""
        return [
            "| way | what sets it | items/s | speed-up | ms/item (median) | ms/item (p95) | peak GB | MFU | first run s | parts, ms/item |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(self._row(rung) for rung in self.rungs),
        ]

    def _row(self, rung: Rung) -> str:
        head = f"| {rung.way.name} | {rung.way.settings or '-'} |"
        if rung.rate is None:
            return f"{head} {rung.lost.replace('|', '/')} | | | | | | | |"
        speedup, used = self.speedup(rung), self.utilisation(rung)
        parts = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in rung.parts.items())
        cells = (
            f"{rung.rate:.2f}",
            f"{speedup:.2f}x" if speedup else "-",
            f"{1000 / rung.rate:.1f}",
            f"{1000 * rung.worst / rung.way.items:.1f}",
            f"{rung.peak_bytes / 1e9:.2f}",
            f"{100 * used:.1f} %" if used else "-",
            f"{rung.first_seconds:.1f}",
            parts or "-",
        )
        return f"{head} {' | '.join(cells)} |"
