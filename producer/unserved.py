"""Notices that a job stands still because no worker serves a stage of it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from shared.errors import BrokerError
from shared.keys import STAGES
from shared.presence import present

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from shared.progress import Counts

STILL_SECONDS = 15.0
"""Without progress, before workers are looked for: three times as long as between two signs of a worker."""


class Unserved:
    """Looks at a job's counts as they come, and tells once which stages nobody serves."""

    def __init__(self, client: redis.Redis, tell: Callable[[str], object]) -> None:
        self._client = client
        self._tell = tell
        self._told = False
        self._ended: tuple[int, ...] = ()
        self._since = time.monotonic()

    def look(self, counts: Counts) -> None:
        """Look for workers when nothing has gone on for a while."""
        ended = (*counts.stages.values(), counts.failed)
        if ended != self._ended or counts.state != "running" or not counts.sent:
            self._ended, self._since = ended, time.monotonic()
        elif not self._told and time.monotonic() - self._since >= STILL_SECONDS:
            self._since = time.monotonic()
            with suppress(BrokerError):  # told by who waits for it
                self._look_for_workers(counts)

    def _look_for_workers(self, counts: Counts) -> None:
        serving = {worker.partition("@")[0] for worker in present(self._client)}
        waited_for = [stage for stage in STAGES if counts.stages[stage] + counts.failed < counts.items]
        if lacking := [stage for stage in waited_for if stage not in serving]:
            commands = " and ".join(f"`vitrina worker {stage} --broker …`" for stage in lacking)
            self._tell(f"no worker serves {', '.join(lacking)}: start {commands}")
            self._told = True
