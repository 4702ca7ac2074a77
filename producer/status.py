"""How far a job is, and what stands around it: queues, workers, failures by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shared.presence import present
from shared.queues import depths

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from producer.follow import Summary
    from shared.progress import Counts, Progress
    from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a job waits for. Of a job whose services are gone nothing is known."""

    queues: Mapping[str, int]
    """Messages that wait in each queue, of all jobs, and those that workers hold, as `running`; empty where the queues are not in Redis."""
    workers: Mapping[str, int]
    """Live workers of each stage."""
    reasons: Mapping[str, int]
    """Failures by reason, the most frequent first."""

    @classmethod
    def of(cls, client: redis.Redis, progress: Progress, settings: Settings) -> Surroundings:
        """Look around. Raises `BrokerError`."""
        queues = depths(client) if settings.queues_in_redis else {}
        workers = Counter(name.partition("@")[0] for name in present(client))
        return cls(queues, dict(workers), progress.reasons())

    def line(self) -> str:
        """Say it in one line."""
        waiting = ", ".join(f"{queue} {depth}" for queue, depth in self.queues.items() if depth and queue != "running")
        workers = ", ".join(f"{number} {stage}" for stage, number in self.workers.items())
        failed = ", ".join(f"{reason} {number}" for reason, number in self.reasons.items())
        parts = (
            f"workers: {workers or 'none'}",
            f"waiting: {waiting or 'nothing'}" if self.queues else "",
            f"running: {self.queues['running']}" if self.queues else "",
            f"failed: {failed}" if failed else "",
        )
        return " · ".join(part for part in parts if part)


def state_of(counts: Counts) -> str:
    """Say in a word how a job is: `running`, `paused`, `cancelled`, `finished`; `unknown` when the broker has forgotten it."""
    if counts.state != "running":
        return counts.state
    return "finished" if counts.finished else "running" if counts.known else "unknown"


def status(summary: Summary, counts: Counts, around: Surroundings | None) -> dict[str, Any]:
    """Return the JSON-able form of `vitrina status`; `around` is None when there is no broker to ask. What that has forgotten has ended: it has a summary."""
    left = counts.items - counts.done - counts.failed
    known = counts.listed and state_of(counts) == "running" and summary.images_per_second > 0
    form = summary.to_dict() | {
        "state": state_of(counts) if counts.known else "finished",
        "listed": counts.listed,
        "finished": counts.finished,
        "stages": dict(counts.stages),
        "eta_seconds": round(left / summary.images_per_second) if known else None,
    }
    return form | (asdict(around) if around else {})
