"""How much memory the pictures of a worker may take at once: many threads of large photos must not kill the host."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from workers.quarantine import LOOK_SECONDS, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.keys import StageName

BYTES_PER_PIXEL: dict[StageName, int] = {"segmentation": 24, "inpainting": 24, "captioning": 8}
"""Peak of one photo on its way through a stage: 64 megapixels were measured to take 1.4 GB in segmentation."""
OUTPUT_BYTES_PER_PIXEL = 5
"""No output of a stage is larger: red, green, blue and alpha as they are, with what PNG adds to pixels it cannot make smaller."""
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


@dataclass(eq=False, slots=True)
class Share:
    """What one item has of a budget."""

    held: int = 0
    """Bytes."""
    at_work: bool = False


class Budget:
    """Bytes shared by the threads of a worker, taken in two steps: what an item's files can be, then what the work on them takes.

    One item alone may always go on, whatever it takes; none is overtaken for ever.
    """

    def __init__(self, limit: int, stopping: Callable[[], bool]) -> None:
        self._limit = limit
        self._stopping = stopping
        self._changed = threading.Condition()
        self._taken = 0
        self._at_work = 0
        self._arriving: deque[Share] = deque()
        self._growing: deque[Share] = deque()
        self.peak = 0
        """Most bytes taken at once."""

    @contextmanager
    def taking(self, wanted: int) -> Iterator[Share]:
        """Take `wanted` bytes for a while, when there is room. Raises `StoppedError` when the worker stops first."""
        share = Share()
        with self._changed:
            # Whose files are in memory already goes first: it could not end behind one that waits for its memory.
            self._wait(self._arriving, share, lambda: not self._growing and (not self._taken or self._fits(wanted)))
            self._change(share, wanted)
        try:
            yield share
        finally:
            self.keep(share, 0)

    def work(self, share: Share, held: int, more: int) -> None:
        """Let an item that has come to hold `held` bytes take `more`, when there is room. Raises `StoppedError`."""
        with self._changed:
            self._change(share, held)
            # Of those that only hold files, one goes on in any case: they would wait for each other for ever.
            self._wait(self._growing, share, lambda: not self._at_work or self._fits(more))
            self._change(share, held + more, at_work=True)

    def keep(self, share: Share, held: int) -> None:
        """Take back all but `held` bytes of an item whose work is done."""
        with self._changed:
            self._change(share, held)

    def _fits(self, more: int) -> bool:
        return self._taken + more <= self._limit

    def _change(self, share: Share, held: int, *, at_work: bool = False) -> None:
        self._taken += held - share.held
        self._at_work += at_work - share.at_work
        self.peak = max(self.peak, self._taken)
        share.held, share.at_work = held, at_work
        self._changed.notify_all()

    def _wait(self, line: deque[Share], share: Share, free: Callable[[], bool]) -> None:
        if not line and free():
            return
        # First come, first served: a large photo would find no room while small ones keep coming, until the watchdog ends the worker.
        line.append(share)
        try:
            while not self._changed.wait_for(lambda: line[0] is share and free(), LOOK_SECONDS):
                if self._stopping():
                    raise StoppedError
        finally:
            line.remove(share)
            self._changed.notify_all()
