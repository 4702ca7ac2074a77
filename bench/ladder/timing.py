"""Timing: what one rung of a ladder costs, and what the device could do."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}
"""Side of the square product that the device's best rate is measured with."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One way of doing a stage's work, measured."""

    name: str
    items: int
    """Photos or sentences in one run."""
    seconds: tuple[float, ...]
    """Of each run."""
    first_seconds: float
    """Of the run before them: compiling, allocating, choosing kernels."""
    peak_bytes: int
    """Largest memory allocated on the device; 0 on a CPU."""
    same: bool = True
    """Makes what the others make. One that makes less is no measure of speed, and is not the figure that is told."""
    flops: float = 0.0
    """Of one item; multiply and add are two."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds per item by part."""

    @property
    def rate(self) -> float:
        """Items per second, by the median run."""
        return self.items / statistics.median(self.seconds)

    def utilisation(self, peak: float) -> float | None:
        """Return the share of the device's measured `peak` (FLOP/s) that this rung used; None where nothing was counted."""
        return self.rate * self.flops / peak if self.flops else None

    def row(self, base: float, peak: float) -> str:
        """Return a line of the table, with the speed-up over `base` items per second."""
        median, worst = statistics.median(self.seconds), percentile(self.seconds, 0.95)
        used = self.utilisation(peak)
        share = f"{100 * used:.1f} %" if used is not None else "-"
        parts = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in self.parts.items()) or "-"
        return (
            f"| {self.name} | {self.rate:.2f} | {self.rate / base:.2f}x | {1000 * median / self.items:.1f} | "
            f"{1000 * worst / self.items:.1f} | {self.peak_bytes / 1e9:.2f} | {share} | {self.first_seconds:.1f} | {parts} |"
        )


HEADER = (
    "| way | items/s | speed-up | ms/item (median) | ms/item (p95) | peak GB | FLOP use | first run s | parts, ms/item |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def percentile(values: tuple[float, ...], part: float) -> float:
    """Return the value that `part` (0 to 1) of the values do not exceed; of few values, the nearest one above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Bench:
    """One device and how long to measure on it."""

    def __init__(self, device: str, runs: int) -> None:
        self.device = torch.device(device)
        self.runs = runs
        self.peak = matmul_rate(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Half precision on a GPU, single on a CPU."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def sync(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(
        self, name: str, items: int, do: Callable[[], Any], *, flops: float = 0.0, parts: dict[str, float] | None = None
    ) -> Rung:
        """Run once to warm up, then `runs` times. An out-of-memory error is the caller's."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        first = self._timed(do)
        seconds = tuple(self._timed(do) for _ in range(self.runs))
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return Rung(name, items, seconds, first, peak, flops, parts or {})

    def part(self, do: Callable[[], Any], items: int) -> float:
        """Return the seconds per item of one part, by the median of `runs` runs after one."""
        self._timed(do)
        return statistics.median(self._timed(do) for _ in range(self.runs)) / items

    def _timed(self, do: Callable[[], Any]) -> float:
        self.sync()
        start = time.perf_counter()
        do()
        self.sync()
        return time.perf_counter() - start


def count_flops(do: Callable[[], Any], items: int) -> float:
    """Return the FLOPs per item of what torch does in `do`: matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - slow to import

    with FlopCounterMode(display=False) as counter:
        do()
    return counter.get_total_flops() / items


def matmul_rate(device: torch.device) -> float:
    """Return the best FLOP/s of the device on a large matrix product, in the precision that models use there."""
    side = MATMUL_SIDE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * side**3 / best


def device_name(device: torch.device) -> str:
    """Name the device as its maker does."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
