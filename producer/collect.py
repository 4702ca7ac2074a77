"""Reads a job's outcome back from storage and progress into the report's cards, failures first."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from PIL import Image

from producer.report import Card, write_report
from producer.report import Summary as Page
from shared.errors import ItemError, StorageError
from shared.jobs import read_items
from shared.keys import STAGES
from shared.pictures import decode, thumbnail
from shared.plan import Plan, model_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from producer.follow import Summary
    from shared.jobs import Job
    from shared.messages import Item
    from shared.progress import Failure, Progress
    from shared.settings import Settings
    from shared.storage import Storage

VERSION = "0.1.0"
SIDE = 192
"""Pixels of a thumbnail's longer side."""
READERS = 8
"""Items read at once: storage answers slower than a thumbnail is made."""


class Collector:
    """Makes the report of one job."""

    def __init__(self, job: Job, source: Storage, destination: Storage, progress: Progress, settings: Settings) -> None:
        self._job = job
        self._source = source
        self._destination = destination
        self._progress = progress
        self._settings = settings
        self._plan = Plan(job.recipe)

    def write(self, path: Path, summary: Summary, *, limit: int) -> None:
        """Write the report of at most `limit` items: failures, then those in need of review, then the others."""
        seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        cards = list(self._cards(limit, seconds))
        page = Page(
            job=self._job.id,
            source=self._job.source,
            destination=self._job.destination,
            recipe_text=self._job.recipe.to_json().decode(),
            items=summary.items,
            done=summary.done,
            needs_review=summary.needs_review,
            failed=summary.failed,
            skipped=summary.skipped,
            seconds=summary.seconds,
            images_per_second=summary.images_per_second,
            stage_seconds={stage: sum(times) / len(times) for stage, times in seconds.items() if times},
            started=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self._job.created)),
            models={stage: model_name(self._job.recipe, stage) for stage in STAGES},
            version=VERSION,
        )
        write_report(path, page, cards)

    def _cards(self, limit: int, seconds: dict[str, list[float]]) -> Iterator[Card]:
        failures = {failure.index: failure for failure in self._progress.failures()}
        done, review = self._progress.outcome_bits()
        rows: list[tuple[int, Item, Failure | None]] = []
        for item in read_items(self._destination, self._job.id):
            rank = 0 if item.index in failures else 1 if _bit(review, item.index) else 2
            if rank == 0 or _bit(done, item.index):
                rows.append((rank, item, failures.get(item.index)))
        rows.sort(key=lambda row: row[0])
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(lambda row: self._card(row[1], row[2], seconds), rows[:limit])

    def _card(self, item: Item, failure: Failure | None, seconds: dict[str, list[float]]) -> Card:
        if failure is not None and failure.stage == "listing":
            return Card(
                index=item.index,
                key=failure.key,
                outcome="failed",
                skipped=False,
                reasons=(failure.reason,),
                detail=failure.detail,
                captions={},
                pictures={},
                links={},
                timings={},
                facts={},
            )
        outputs = self._plan.outputs(item.key, item.etag)
        record: dict[str, Any] = {}
        if failure is None:
            try:
                record = json.loads(self._destination.get(outputs.key("caption")).data)
            except StorageError as error:
                record = {"outcome": "failed", "reasons": [error.reason]}
        timings: dict[str, float] = {}
        facts: dict[str, str] = {}
        for stage, provenance in record.get("stages", {}).items():
            # Waiting for the batch is the queue's time, not the item's.
            phases = {phase: spent for phase, spent in provenance.get("seconds", {}).items() if phase != "wait"}
            timings[stage] = round(sum(phases.values()), 3)
            seconds[stage].append(timings[stage])
            facts |= {str(name): str(value) for name, value in provenance.get("measures", {}).items()}
        return Card(
            index=item.index,
            key=item.key,
            outcome="failed" if failure else record["outcome"],
            skipped=False,
            reasons=(failure.reason,) if failure else tuple(record.get("reasons", ())),
            detail=failure.detail if failure else "",
            captions=record.get("captions", {}),
            pictures=self._pictures(item, outputs.key),
            links={} if failure else dict(record.get("outputs", {})),
            timings=timings,
            facts=facts,
        )

    def _pictures(self, item: Item, name: Any) -> dict[str, bytes]:
        pictures = {}
        for kind in ("source", "mask", "cutout", "image"):
            storage, key = (self._source, item.key) if kind == "source" else (self._destination, name(kind))
            try:
                data = storage.get(key, limit=self._settings.max_bytes * 4).data
                if kind == "source":
                    limits = {"max_bytes": self._settings.max_bytes, "max_pixels": self._settings.max_pixels}
                    photo = decode(data, **limits)
                    image = photo.rgb
                    if photo.alpha is not None:
                        image.putalpha(photo.alpha)
                else:
                    image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"])
                    image.load()
            except (ItemError, StorageError, OSError):
                continue  # a failed item has only some of its pictures; the card says why
            transparent = image.mode in {"RGBA", "LA"}
            pictures[kind] = thumbnail(image, SIDE, checkerboard=transparent)
        return pictures


def _bit(bits: bytes, index: int) -> bool:
    # Redis numbers bits from the most significant one of each byte.
    byte = index >> 3
    return byte < len(bits) and bool(bits[byte] & (0x80 >> (index & 7)))
