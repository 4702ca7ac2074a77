"""How much memory the pictures of a worker may take at once: many threads of large photos must not kill the host."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from workers.quarantine import LOOK_SECONDS, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.keys import StageName

BYTES_PER_PIXEL: dict[StageName, int] = {"segmentation": 24, "inpainting": 24, "captioning": 8}
"""Peak of one photo on its way through a stage: 64 megapixels were measured to take 1.4 GB in segmentation."""
SHARE = 4
"""Three stages may share a machine, with room left for the models: a quarter each."""
_CGROUPS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def machine_bytes() -> int:
    """Return the memory this process may use: its container's limit, or the machine's."""
    total = int(psutil.virtual_memory().total)
    for name in _CGROUPS:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


class Budget:
    """Bytes shared by the threads of a worker. One photo alone may always run, whatever it takes; none is overtaken for ever."""

    def __init__(self, limit: int, stopping: Callable[[], bool]) -> None:
        self._limit = limit
        self._stopping = stopping
        self._changed = threading.Condition()
        self._taken = 0
        self._queue: deque[object] = deque()
        self.peak = 0
        """Most bytes taken at once."""

    @contextmanager
    def taking(self, wanted: int) -> Iterator[None]:
        """Take `wanted` bytes for a while, when there is room. Raises `StoppedError` when the worker stops first."""
        with self._changed:
            self._wait_in_line(wanted)
            self._taken += wanted
            self.peak = max(self.peak, self._taken)
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()

    def _wait_in_line(self, wanted: int) -> None:
        # First come, first served: a large photo would find no room while small ones keep coming, until the watchdog ends the worker.
        place = object()
        self._queue.append(place)
        try:
            while not self._changed.wait_for(
                lambda: self._queue[0] is place and (not self._taken or self._taken + wanted <= self._limit),
                LOOK_SECONDS,
            ):
                if self._stopping():
                    raise StoppedError
        finally:
            self._queue.remove(place)
            self._changed.notify_all()
