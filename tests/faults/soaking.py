"""Many items through the same processes: none of them grows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import psutil
from lab import Lab, Outcome

from producer.launch import env_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST = 8e6
"""Bytes that a process may grow by, were the whole job as its second half: less than the noise of an allocator, and 400 an item of 20,000."""


@contextmanager
def keeping(lab: Lab) -> Iterator[int]:
    """Run a keeper beside a laboratory; yields the id of its process."""
    command = [sys.executable, "-m", "producer.cli", "keeper", "--out", str(lab.out), "--every", "1"]
    with (lab.folder / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(command, env=os.environ | env_for(lab.settings), stdout=log, stderr=log)
    try:
        yield keeper.pid
    finally:
        keeper.terminate()
        keeper.wait()


def soak(folder: Path, *, items: int = 20_000, seconds: float = 400) -> Outcome:
    """Measure the memory of every process over the job's second half, when pools and caches are full."""
    with Lab(folder, window=1000) as lab, keeping(lab) as keeper:
        for number in range(items):
            lab.say(f"{number:06d}", "quick")
        session = lab.session()
        processes = {worker.name: worker.pid for worker in lab.workers}
        processes |= {"producer": os.getpid(), "keeper": keeper, "broker": lab.broker.pid}
        watched = {name: psutil.Process(pid) for name, pid in processes.items()}
        seen: dict[str, list[tuple[int, int]]] = {name: [] for name in watched}
        over = threading.Event()

        def weigh() -> None:
            # By the clock: who feeds the job is busy with other things as well.
            while not over.wait(0.2):
                done = session.progress.counts().done
                for name, process in watched.items():
                    seen[name].append((done, process.memory_info().rss))

        weighing = threading.Thread(target=weigh)
        weighing.start()
        try:
            lab.run(session, seconds=seconds)
        finally:
            over.set()
            weighing.join()
        outcome = lab.audit(session)
        for name, points in seen.items():
            late = np.array([point for point in points if point[0] > items / 2], dtype=float)
            slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else 0.0
            outcome.also[f"{name}_bytes_per_item"] = round(slope, 1)
            outcome.expect(f"{name} does not grow: {slope:.0f} bytes an item", slope * items <= MOST)
            outcome.expect(f"{name} was weighed", len(late) > 2)
        return outcome
