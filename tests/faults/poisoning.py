"""Photos that kill, hang and starve their worker, among healthy ones."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from lab import Lab, Outcome

if TYPE_CHECKING:
    from pathlib import Path

POISONS = {"kills": "die", "hangs": "hang", "starves": "eat"}
REASONS = {"kills": {"worker_lost"}, "hangs": {"worker_lost"}, "starves": {"out_of_memory", "worker_lost"}}
LIMIT = 2_000_000_000
"""Bytes of address space of a worker: what a container's limit is."""


def poison(folder: Path, *, items: int = 500, seconds: float = 240, deadline: float = 4.0) -> Outcome:
    """Exactly the three poisoned photos fail, each with its reason; no neighbour does."""
    settings = {"visibility_timeout": 4, "task_deadline": deadline, "batch_deadline": deadline}
    with Lab(folder, max_attempts=3, **settings) as lab:
        for number in range(items):
            lab.say(f"{number:05d}", "slow:0.02")
        for name, word in POISONS.items():
            lab.say(f"00100-{name}", word)
        session = lab.session()

        def limit() -> None:
            for worker in lab.workers:
                if worker.running:
                    resource.prlimit(worker.pid, resource.RLIMIT_AS, (LIMIT, LIMIT))

        lab.run(session, limit, seconds=seconds)
        outcome = lab.audit(session)
        failures = {failure.key.partition("-")[2] or failure.key: failure.reason for failure in session.failures}
        outcome.also = {"failures": len(failures)}
        outcome.expect(f"exactly the poisoned photos failed: {failures}", set(failures) == set(POISONS))
        for name, reasons in REASONS.items():
            outcome.expect(f"the photo that {name} its worker has its reason", failures.get(name) in reasons)
        return outcome
