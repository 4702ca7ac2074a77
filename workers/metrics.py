"""Prometheus metrics of a worker: items by outcome, seconds by phase, batches, bytes, the device. One hook each, never inside a stage."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.errors import VitrinaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from shared.keys import StageName

_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
OUTCOMES = "done", "needs_review", "skipped"
"""How an item gets through a stage; `retried` and `failed` come with a reason."""

ITEMS = Counter("vitrina_items", "Items through a stage", ["stage", "outcome", "reason"])
DOUBTS = Counter(
    "vitrina_review_reasons", "Reasons to look at an item that a stage has found, maybe several", ["stage", "reason"]
)
PHASES = Histogram("vitrina_phase_seconds", "Seconds of one item in a phase", ["stage", "phase"], buckets=_SECONDS)
QUEUED = Histogram(
    "vitrina_queue_wait_seconds",
    "Seconds of one item in the queue before a stage",
    ["stage"],
    buckets=(0.1, 1, 10, 60, 600, 3600, 21600, 86400),
)
BATCHES = Histogram("vitrina_batch_size", "Inputs in a batch", ["stage"], buckets=(1, 2, 4, 8, 16, 32, 64))
BUSY = Counter("vitrina_model_busy_seconds", "Seconds in which the model ran: its rate is the busy ratio", ["stage"])
BYTES = Counter("vitrina_storage_bytes", "Bytes `read` from storage and `written` to it", ["stage", "direction"])
LOADS = Histogram(
    "vitrina_model_load_seconds", "Seconds to load and warm up a model", ["stage", "model"], buckets=_SECONDS
)
PAUSED = Gauge("vitrina_storage_paused", "Whether photos are put off since the storage is down for all of their job")


def begin(stage: StageName) -> None:
    """Show a stage's counters before anything is counted: a rate cannot see a series' first step."""
    for outcome in OUTCOMES:
        ITEMS.labels(stage, outcome, "")
    for reason in _reasons(VitrinaError):
        ITEMS.labels(stage, "failed", reason)
    for direction in ("read", "written"):
        BYTES.labels(stage, direction)
    BUSY.labels(stage)


def _reasons(kind: type[VitrinaError]) -> set[str]:
    return {kind.reason}.union(*map(_reasons, kind.__subclasses__()))


def count(stage: StageName, outcome: str, reason: str = "") -> None:
    """Count an item: `done`, `needs_review`, `skipped`, `retried` or `failed` with its reason."""
    ITEMS.labels(stage, outcome, reason).inc()


def doubted(stage: StageName, reasons: Iterable[str]) -> None:
    """Count what a stage's own gates found; those are a few dozen words."""
    for reason in reasons:
        DOUBTS.labels(stage, reason).inc()


def waited(stage: StageName, published: float | None) -> None:
    """Record how long an item lay in its queue; brokers that are not Redis do not say since when."""
    if published is not None:
        QUEUED.labels(stage).observe(max(0.0, time.time() - published))  # the clocks of two machines differ


def observe(stage: StageName, seconds: Mapping[str, float]) -> None:
    """Record the phases of one item; of one that failed, those it got through, and the time in its last one as `unfinished`."""
    for phase, spent in seconds.items():
        PHASES.labels(stage, phase).observe(spent)


def loaded(stage: StageName, model: str, seconds: float) -> None:
    """Record that a model was loaded; the first one on a GPU brings the GPU's memory into view."""
    LOADS.labels(stage, model).observe(seconds)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        _show(torch.cuda)


class DeviceMemory(Collector):
    """Memory of the GPUs that this process uses."""

    def __init__(self, cuda: Any) -> None:
        """`cuda` is `torch.cuda`, which this module does not import."""
        self._cuda = cuda

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the driver for the whole device, and torch for our own part."""
        family = GaugeMetricFamily(
            "vitrina_gpu_memory_bytes",
            "Memory of a GPU: `used` by models and batches, `reserved` by this process, `free` and `total` of the device",
            labels=["device", "kind"],
        )
        for device in range(self._cuda.device_count()):
            reserved = self._cuda.memory_reserved(device)
            if not reserved:
                continue  # asking the driver about a device that is not ours would take half a gigabyte of it
            free, total = self._cuda.mem_get_info(device)
            kinds = {
                "used": self._cuda.memory_allocated(device),
                "reserved": reserved,
                "free": free,
                "total": total,
            }
            for kind, size in kinds.items():
                family.add_metric([str(device), kind], size)
        yield family


_shown: list[DeviceMemory] = []


def _show(cuda: Any) -> None:
    if not _shown:
        _shown.append(DeviceMemory(cuda))
        REGISTRY.register(_shown[0])
