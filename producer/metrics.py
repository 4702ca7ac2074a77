"""Prometheus metrics of the keeper: queues, workers, jobs and the broker, read anew at every scrape."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.connection import broker_errors, connect
from shared.errors import BrokerError
from shared.keys import STAGES, queue_name
from shared.lease import is_held
from shared.presence import present
from shared.probe import Probe
from shared.progress import JOBS, Progress, known_jobs
from shared.queues import depths, held, oldest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import redis

    from producer.keeper import Keeper
    from shared.progress import Counts
    from shared.settings import Settings

log = logging.getLogger(__name__)

JOBS_SHOWN = 20
"""Unfinished jobs with series of their own, those that stood still longest: what Prometheus keeps must not grow with the jobs there ever were."""
JOBS_READ = 500
"""The newest jobs, which are looked at; each takes two round trips, a third of a millisecond."""


def gauge(name: str, help_: str, labels: Iterable[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """Put one metric together from its values by label."""
    family = GaugeMetricFamily(name, help_, labels=list(labels))
    for label, value in values:
        family.add_metric(label, value)
    return family


class BrokerCollector(Collector):
    """What the broker knows. One that does not answer within seconds is `vitrina_broker_up 0` and nothing else.

    A job is labelled `job_id`: Prometheus calls its own groups of targets `job`.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the broker of the settings. Raises `UsageError` for what is no Redis address."""
        self._client = connect(settings, quick=True)
        # What waits in RabbitMQ, its own metrics tell.
        self._readers = (*((_queues,) if settings.queues_in_redis else ()), _workers, _memory, _jobs)

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: that would ask the broker."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        found: list[Metric] = []
        try:
            for read in self._readers:
                found.extend(read(self._client))
        except BrokerError as error:
            log.debug("scraped without a broker: %s", error)  # the keeper itself says so
            found = []
        yield gauge("vitrina_broker_up", "Whether the broker answers", (), [((), float(bool(found)))])
        yield from found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _queues(client: redis.Redis) -> Iterator[Metric]:
    waiting, waits, running = depths(client), oldest(client), held(client)
    names = [(queue_name(stage, priority=first), stage) for stage in STAGES for first in (True, False)]
    yield gauge(
        "vitrina_queue_depth",
        "Messages that wait in a queue",
        ["queue", "stage"],
        [((queue, stage), waiting[queue]) for queue, stage in names],
    )
    yield gauge(
        "vitrina_queue_oldest_seconds",
        "For how long the next message of a queue has waited",
        ["queue", "stage"],
        [((queue, stage), waits[queue]) for queue, stage in names],
    )
    yield gauge(
        "vitrina_queue_in_flight",
        "Messages that the workers of a stage hold, waiting retries included",
        ["stage"],
        [((stage,), running[stage]) for stage in STAGES],
    )


def _workers(client: redis.Redis) -> Iterator[Metric]:
    live = Counter(name.partition("@")[0] for name in present(client))
    yield gauge("vitrina_workers", "Live workers of a stage", ["stage"], [((stage,), live[stage]) for stage in STAGES])


def _memory(client: redis.Redis) -> Iterator[Metric]:
    with broker_errors():
        info: dict[str, Any] = client.info("memory")
    # Without a limit of its own the server takes what the machine has; a managed one may not say.
    limit = info.get("maxmemory") or info.get("total_system_memory") or 0
    yield gauge(
        "vitrina_broker_memory_used_bytes", "Memory the broker uses", (), [((), float(info.get("used_memory", 0)))]
    )
    if limit:
        yield gauge("vitrina_broker_memory_max_bytes", "Memory the broker may use", (), [((), float(limit))])


def _jobs(client: redis.Redis) -> Iterator[Metric]:
    reasons: Counter[str] = Counter()
    unfinished: dict[str, Counts] = {}
    for job in known_jobs(client)[:JOBS_READ]:
        progress = Progress(client, job)
        counts = progress.counts()
        if not counts.known:
            continue  # forgotten meanwhile
        if counts.failed:
            reasons.update(progress.reasons())
        if not counts.finished:
            unfinished[job] = counts
    yield gauge("vitrina_jobs_unfinished", "Jobs that have not ended", (), [((), float(len(unfinished)))])
    yield gauge(
        "vitrina_dead_letters",
        "Failed items of all jobs the broker knows, which `vitrina retry` would run again",
        ["reason"],
        [((reason,), number) for reason, number in sorted(reasons.items())],
    )
    moved = {job: counts.changed or _begun(client, job) for job, counts in unfinished.items()}
    shown = {job: unfinished[job] for job in sorted(moved, key=moved.__getitem__)[:JOBS_SHOWN]}
    numbers: dict[str, tuple[str, Callable[[Counts], int]]] = {
        "vitrina_job_items": ("Items listed so far", lambda counts: counts.items),
        "vitrina_job_done": ("Items with every output", lambda counts: counts.done),
        "vitrina_job_needs_review": ("Of the done: items to look at", lambda counts: counts.needs_review),
        "vitrina_job_failed": ("Items that failed", lambda counts: counts.failed),
    }
    for name, (help_, number) in numbers.items():
        yield gauge(name, help_, ["job_id"], [((job,), number(counts)) for job, counts in shown.items()])
    yield gauge(
        "vitrina_job_fed",
        "Whether all photos of an unfinished job are queued or a producer is there to queue them",
        ["job_id"],
        [((job,), _queued(counts) or is_held(client, f"producer:{job}")) for job, counts in shown.items()],
    )
    yield gauge(
        "vitrina_job_last_progress_timestamp_seconds",
        "When an unfinished job's last item was done or failed; its start when none was",
        ["job_id", "state"],
        [((job, counts.state), moved[job]) for job, counts in shown.items()],
    )


def _queued(counts: Counts) -> bool:
    return counts.listed and counts.sent >= counts.items


def _begun(client: redis.Redis, job: str) -> float:
    with broker_errors():
        score: Any = client.zscore(JOBS, job)
    return float(score or time.time())


class KeeperCollector(Collector):
    """What this keeper itself does."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        """Read the keeper's own state."""
        looked, active = self._keeper.looked, self._keeper.active
        yield gauge("vitrina_keeper_active", "Whether this keeper does the work", (), [((), float(bool(active)))])
        yield gauge("vitrina_keeper_last_look_timestamp_seconds", "When it last reached the broker", (), [((), looked)])


def serve(keeper: Keeper, settings: Settings) -> Probe:
    """Answer probes and scrapes at the port of the settings until closed. Raises `UsageError`.

    It is ready from the first look on, and alive as long as it gets on; a broker that is away is the broker's fault, not the keeper's.
    """
    registry = CollectorRegistry()
    registry.register(BrokerCollector(settings))
    registry.register(KeeperCollector(keeper))
    return Probe(
        settings.metrics_port, alive=lambda: keeper.alive, ready=lambda: keeper.active is not None, registry=registry
    )
