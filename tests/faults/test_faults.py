"""Short versions of `make faults`: whatever dies, every photo ends exactly once. How soon, only the long ones judge: here others run beside."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from breaking import full, restarts, slow_network, unreachable, wiped
from fuzzing import fuzz
from killing import kills, signals
from poisoning import poison
from producing import producers
from soaking import soak
from storing import read_only, storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lab import Outcome

SHORT: dict[str, Callable[[Path], Outcome]] = {
    "workers are killed": partial(kills, items=250, kills=6),
    "workers are asked to end": partial(signals, items=300, storms=6),
    "the broker restarts": partial(restarts, items=400, times=2),
    "the broker forgets": partial(wiped, items=150),
    "the broker is full": partial(full, items=120, seconds=3),
    "the network is slow": partial(slow_network, items=60),
    "the broker is out of reach": partial(unreachable, items=120, seconds=4),
    "the storage errs and goes away": partial(storage, items=60, outage=3),
    "the storage takes nothing": partial(read_only, items=60, seconds=4),
    "photos kill their worker": partial(poison, items=60),
    "producers and keepers are killed": partial(producers, items=500, kills=6),
    "pictures and texts are hostile": partial(fuzz, pictures=1000, hostile=1000),
    # The keeper's first page of results, a thousand, is gathered seconds later: well within the half that is not weighed.
    "many items pass": partial(soak, items=4000),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_or_doubled_when(name: str, tmp_path: Path) -> None:
    """Submitted is finished and failed, outputs are there once, and what was promised beside that is kept."""
    outcome = SHORT[name](tmp_path)
    assert outcome.well, outcome
