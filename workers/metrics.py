"""Prometheus metrics of a worker: items by outcome, seconds by phase, batch sizes. One hook each, never inside a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.keys import StageName

_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ITEMS = Counter("vitrina_items", "Items through a stage", ["stage", "outcome", "reason"])
PHASES = Histogram("vitrina_phase_seconds", "Seconds of one item in a phase", ["stage", "phase"], buckets=_SECONDS)
BATCHES = Histogram("vitrina_batch_size", "Inputs in a batch", ["stage"], buckets=(1, 2, 4, 8, 16, 32, 64))
LOADS = Histogram(
    "vitrina_model_load_seconds", "Seconds to load and warm up a model", ["stage", "model"], buckets=_SECONDS
)


def count(stage: StageName, outcome: str, reason: str = "") -> None:
    """Count an item: `done`, `needs_review`, `skipped`, `retried` or `failed` with its reason."""
    ITEMS.labels(stage, outcome, reason).inc()


def observe(stage: StageName, seconds: Mapping[str, float]) -> None:
    """Record the phases of one finished item."""
    for phase, spent in seconds.items():
        PHASES.labels(stage, phase).observe(spent)
