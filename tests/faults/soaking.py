"""Many items through the same processes: none of them grows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import psutil
from lab import Lab, Outcome

if TYPE_CHECKING:
    from pathlib import Path

MOST = 400.0
"""Bytes an item may leave behind: 20,000 of them are 8 MB, less than the noise of an allocator."""


def soak(folder: Path, *, items: int = 20_000, seconds: float = 400) -> Outcome:
    """Measure the memory of every process over the job's second half, when pools and caches are full."""
    with Lab(folder, window=1000) as lab:
        for number in range(items):
            lab.say(f"{number:06d}", "quick")
        session = lab.session()
        watched = {worker.name: psutil.Process(worker.pid) for worker in lab.workers} | {"producer": psutil.Process()}
        seen: dict[str, list[tuple[int, int]]] = {name: [] for name in watched}
        upcoming = 0.0

        def weigh() -> None:
            nonlocal upcoming
            if time.monotonic() > upcoming:
                upcoming = time.monotonic() + 0.5
                done = session.progress.counts().done
                for name, process in watched.items():
                    seen[name].append((done, process.memory_info().rss))

        lab.run(session, weigh, seconds=seconds)
        outcome = lab.audit(session)
        for name, points in seen.items():
            late = np.array([point for point in points if point[0] > items / 2], dtype=float)
            slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else 0.0
            outcome.also[f"{name}_bytes_per_item"] = round(slope, 1)
            outcome.expect(f"{name} does not grow: {slope:.0f} bytes an item", slope <= MOST)
            outcome.expect(f"{name} was weighed", len(late) > 2)
        return outcome
