"""How far a job is, and what stands around it: queues, workers, failures by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from producer.pace import pace_of
from shared.keys import STAGES
from shared.lease import feeding, is_held
from shared.presence import present
from shared.queues import depths

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from producer.follow import Summary
    from shared.jobs import Job
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
    fed: bool
    """Whether a producer is there that lists and queues its photos."""
    rates: Mapping[str, float]
    """Images per second through each stage over the last minute; empty when nobody looks after the job."""
    eta_seconds: int | None
    """Until all items are through, at these rates; None while the source is being listed, or at a standstill."""

    @classmethod
    def of(cls, client: redis.Redis, progress: Progress, settings: Settings) -> Surroundings:
        """Look around. Raises `BrokerError`."""
        queues = depths(client) if settings.queues_in_redis else {}
        workers = Counter(name.partition("@")[0] for name in present(client))
        pace = pace_of(client, progress)
        rates = {stage: rate for stage in STAGES if (rate := pace.rate(stage)) is not None}
        left = pace.left(STAGES[-1])
        return cls(
            queues,
            dict(workers),
            progress.reasons(),
            is_held(client, feeding(progress.job)),
            {stage: round(rate, 3) for stage, rate in rates.items()},
            round(left) if left else None,
        )

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


def state_of(counts: Counts, *, fed: bool) -> str:
    """Say in a word how a job is: `running`, `paused`, `cancelled`, `finished`; `unknown` when the broker has forgotten it.

    It is `unfed` when part of its source is not listed and no producer is there to go on: what is listed a keeper queues, but no more.
    """
    if counts.state != "running":
        return counts.state
    if not counts.known or counts.finished:
        return "finished" if counts.finished else "unknown"
    return "running" if fed or counts.listed else "unfed"


def feeder(job: Job) -> str:
    """Tell who goes on with a job that is unfed."""
    again = (
        "`vitrina watch`, as it was started" if job.selection.get("watch") else f"`vitrina submit --resume {job.id}`"
    )
    return f"nobody feeds it: go on with {again}"


def status(summary: Summary, counts: Counts, around: Surroundings | None) -> dict[str, Any]:
    """Return the JSON-able form of `vitrina status`; `around` is None when there is no broker to ask. What that has forgotten has ended: it has a summary."""
    state = state_of(counts, fed=around is None or around.fed)
    form = summary.to_dict() | {
        "state": state if counts.known else "finished",
        "listed": counts.listed,
        "finished": counts.finished,
        "stages": dict(counts.stages),
        "eta_seconds": None,
    }
    return form | (asdict(around) if around else {})
