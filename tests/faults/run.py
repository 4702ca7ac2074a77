"""`make faults`: run the scenarios, print a line for each, end with one JSON object. SCENARIO=name runs one."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from breaking import full, partition, restarts, slow_network, unreachable, wiped
from fuzzing import fuzz
from killing import kills, signals
from poisoning import poison
from producing import producers
from soaking import soak
from storing import read_only, storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab import Outcome

SCENARIOS: dict[str, Callable[[Path], Outcome]] = {
    "kills": kills,
    "signals": signals,
    "restarts": restarts,
    "wiped": wiped,
    "full": full,
    "unreachable": unreachable,
    "partition": partition,
    "network": slow_network,
    "storage": storage,
    "read_only": read_only,
    "poison": poison,
    "producers": producers,
    "fuzz": fuzz,
    "soak": soak,
}


def main(names: list[str]) -> int:
    """Run the named scenarios, or all; status 1 when anything was lost, doubled, broken or late."""
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        print(f"no scenario {', '.join(sorted(unknown))}: choose from {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    room = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108 - thousands of small files that are written through
    outcomes: dict[str, Outcome] = {}
    for name in names or SCENARIOS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"vitrina-{name}-", dir=room) as folder:
            outcomes[name] = outcome = SCENARIOS[name](Path(folder))
        also = ", ".join(f"{key} {value:g}" for key, value in outcome.also.items())
        print(
            f"{name:12} submitted {outcome.submitted}, finished {outcome.finished}, failed {outcome.failed}, lost {outcome.lost}, "
            f"doubled {outcome.doubled_outputs}, slowest recovery {outcome.slowest_recovery_seconds:.1f} s, "
            f"{time.monotonic() - began:.0f} s in all{'; ' + also if also else ''}",
            flush=True,
        )
        for broken in [*outcome.wrong, *outcome.late]:
            print(f"             not kept: {broken}", flush=True)
    print(
        json.dumps(
            {
                "lost": sum(outcome.lost for outcome in outcomes.values()),
                "doubled_outputs": sum(outcome.doubled_outputs for outcome in outcomes.values()),
                "slowest_recovery_seconds": max(outcome.slowest_recovery_seconds for outcome in outcomes.values()),
                "scenarios": {name: asdict(outcome) for name, outcome in outcomes.items()},
            }
        )
    )
    return 0 if all(outcome.well and not outcome.late for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
