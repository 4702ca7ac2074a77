"""Timing: what one way of doing a stage's work costs, and what the device could do."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bench.ladder.ways import Rung

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.ladder.ways import Way

MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}
"""Side of the square product that the device's best rate is measured with."""
REST = "rest"
"""The part of a run that is in none of its named parts."""


class Bench:
    """One device and how often to measure on it."""

    def __init__(self, device: str, runs: int) -> None:
        self.device = torch.device(device)
        self.runs = runs
        self.peak = matmul_rate(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Half precision on a GPU, single on a CPU."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def dtype_name(self) -> str:
        """As the tables name it."""
        return str(self.dtype).removeprefix("torch.")

    def measure(self, way: Way) -> Rung:
        """Run once, then `runs` times, then for the parts and the count where the way tells its parts.

        The first run is the first of all: compiling, allocating and choosing kernels are in it. Raises what the way raises.
        """
        self.free()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with way.within():
            first = self._timed(way.do)
            seconds = tuple(self._timed(way.do) for _ in range(self.runs))
            peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
            parts = self._split(way.do, way.parts, way.items) if way.parts else {}
            counted = count_flops(way.do, way.items) if way.parts else None
        return Rung(way=way, seconds=seconds, first_seconds=first, peak_bytes=peak, parts=parts, counted_flops=counted)

    def free(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sync(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _timed(self, do: Callable[[], Any]) -> float:
        self.sync()
        start = time.perf_counter()
        do()
        self.sync()
        return time.perf_counter() - start

    def _split(self, do: Callable[[], Any], parts: Mapping[str, Any], items: int) -> dict[str, float]:
        """Return seconds per item by part in a run of its own, in which every part waits for the device."""
        spent: dict[str, float] = dict.fromkeys((name for names in parts for name in names.split("/")), 0.0)
        with ExitStack() as hooks:
            for names, module in parts.items():
                hooks.enter_context(self._watched(module, names.split("/"), spent))
            whole = self._timed(do)
        spent[REST] = max(0.0, whole - sum(spent.values()))
        return {name: seconds / items for name, seconds in spent.items()}

    @contextmanager
    def _watched(self, module: torch.nn.Module, names: list[str], spent: dict[str, float]) -> Iterator[None]:
        """Add up the seconds of a module's calls: the first call's under the first name, all others' under the last."""
        calls: list[float] = []

        def begin(*_: Any) -> None:
            self.sync()
            calls.append(time.perf_counter())

        def end(*_: Any) -> None:
            self.sync()
            spent[names[0] if len(calls) == 1 else names[-1]] += time.perf_counter() - calls[-1]

        before, after = module.register_forward_pre_hook(begin), module.register_forward_hook(end)
        try:
            yield
        finally:
            before.remove()
            after.remove()


@contextmanager
def compiled(module: torch.nn.Module, **options: Any) -> Iterator[None]:
    """Have a module compiled at its next call, by `torch.compile` with `options`, and leave it as it was.

    What was compiled is kept until `torch.compiler.reset`: compiling it again for the next way takes no time.
    """
    module.compile(**options)
    try:
        yield
    finally:
        module._compiled_call_impl = None  # noqa: SLF001 - `Module.compile` has no opposite


def count_flops(do: Callable[[], Any], items: int) -> float:
    """Return the FLOPs per item of what torch does in `do`: matrix products, convolutions and attention; multiply and add are two."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - slow to import

    with FlopCounterMode(display=False) as counter:
        do()
    return float(counter.get_total_flops()) / items


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
