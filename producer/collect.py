"""Reads a job's outcome back from storage and progress into the report's cards, failures first."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from producer.failures import Failures
from producer.records import read_record
from producer.report import Card, write_report
from producer.report import Summary as Page
from producer.report.facts import evidence_of, facts_of
from shared.bitmap import bit
from shared.errors import ItemError, JobDamagedError, ObjectMissingError, StorageError
from shared.jobs import read_items
from shared.keys import STAGES, own_outputs
from shared.pictures import decode, thumbnail
from shared.plan import Plan, chosen, picture_kinds
from shared.provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from producer.follow import Summary
    from shared.jobs import Job
    from shared.messages import Item
    from shared.progress import Failure, Progress
    from shared.settings import Settings
    from shared.storage import Stat, Storage

REPORT_ITEMS = 5000
"""Cards in a report unless asked for more: about 200 MB of page."""
SIDE, LARGE_SIDE = 256, 288
"""Pixels of a thumbnail's longer side: the steps', which are shown small and large, and the result's, which is shown at about that size."""
READERS = 8
"""Items read at once: storage answers slower than a thumbnail is made."""
PORTION = 64
"""Cards made ahead of the page."""
SAMPLE = 500
"""Items over which a stage's mean time is taken."""

Row = tuple["Item", "Failure | None", bool]
"""An item, why it failed, and whether an earlier job had made its outputs."""


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
        """Write the report of at most `limit` items: failures, then those in need of review, then the others.

        Of a job that the broker has forgotten only what is in the storage is known: the items that were finished.
        """
        known = self._progress.destination() is not None
        rows = self._rows(limit) if known else self._stored_rows(limit)
        page = Page(
            job=self._job.id,
            source=self._job.source,
            destination=self._job.destination,
            recipe_text=yaml.safe_dump(self._job.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            items=summary.items,
            done=summary.done - summary.needs_review,
            needs_review=summary.needs_review,
            failed=summary.failed,
            skipped=summary.skipped,
            seconds=summary.seconds,
            images_per_second=summary.images_per_second,
            stage_seconds=self._stage_seconds(rows),
            started=datetime.fromtimestamp(self._job.created, UTC).isoformat(timespec="seconds"),
            models={stage: f"{chosen(self._job.recipe, stage).model} {self._plan.revision(stage)}" for stage in STAGES},
            version=version("vitrina"),
        )
        write_report(path, page, self._cards(rows[:limit], path.absolute().parent))

    def _rows(self, limit: int) -> list[Row]:
        """Choose up to `limit` failures, then of those in need of review, then of the others; each in the job's order."""
        # The first ones are all that can be shown; a job of millions may have millions.
        failures = {failure.index: failure for failure in islice(Failures(self._destination, self._progress), limit)}
        done, review, ran = self._progress.outcome_bits()
        ranks: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
        for item in read_items(self._destination, self._job.id):
            failure = failures.get(item.index)
            if failure is None and not bit(done, item.index):
                continue  # not finished yet, or a failure past the limit
            rank = ranks[0 if failure else 1 if bit(review, item.index) else 2]
            if len(rank) < limit:
                rank.append((item, failure, not bit(ran, item.index)))
        return [*ranks[0], *ranks[1], *ranks[2]]

    def _stored_rows(self, limit: int) -> list[Row]:
        """Choose the first items that have all outputs, those in need of review before the others."""
        found: list[tuple[bool, Row]] = []
        items = read_items(self._destination, self._job.id)
        with ThreadPoolExecutor(READERS) as pool:
            while len(found) < limit and (portion := list(islice(items, PORTION))):
                for item, stat in zip(portion, pool.map(self._look, portion), strict=True):
                    if stat is not None:
                        made = Provenance.from_metadata(stat.metadata)
                        found.append((not made.reasons, (item, None, made.job != self._job.id)))
        return [row for _, row in sorted(found[:limit], key=lambda ranked: ranked[0])]

    def _look(self, item: Item) -> Stat | None:
        try:
            return self._destination.head(self._plan.outputs(item.key, item.etag, item.fields).marker(STAGES[-1]))
        except ItemError:
            return None  # its name was refused

    def _stage_seconds(self, rows: list[Row]) -> dict[str, float]:
        made = islice((item for item, failure, _ in rows if failure is None), SAMPLE)
        with ThreadPoolExecutor(READERS) as pool:
            records = list(pool.map(self._record, made))
        means: dict[str, float] = {}
        for stage in STAGES:
            spent = [_worked(record["stages"][stage]) for record in records if stage in record.get("stages", {})]
            if spent:
                means[stage] = sum(spent) / len(spent)
        return means

    def _cards(self, rows: list[Row], folder: Path) -> Iterator[Card]:
        with ThreadPoolExecutor(READERS) as pool:
            # In portions, so that thumbnails never wait in memory for the page to be written.
            for start in range(0, len(rows), PORTION):
                yield from pool.map(partial(self._card, folder), rows[start : start + PORTION])

    def _record(self, item: Item) -> dict[str, Any]:
        outputs = self._plan.outputs(item.key, item.etag, item.fields)
        try:
            return read_record(self._destination, outputs.key("caption"))
        except (StorageError, JobDamagedError):
            # Deleted or replaced since: the card says so instead of the report failing.
            return {"outcome": "failed", "reasons": [ObjectMissingError.reason]}

    def _card(self, folder: Path, row: Row) -> Card:
        item, failure, skipped = row
        if failure is not None and failure.stage == "listing":
            return Card(
                index=item.index,
                key=failure.key,
                outcome="failed",
                fields=item.fields,
                reasons=(failure.reason,),
                detail=failure.detail,
            )
        outputs = self._plan.outputs(item.key, item.etag, item.fields)
        record = self._record(item) if failure is None else {}
        stages = record.get("stages", {})
        timings = {stage: round(_worked(provenance), 3) for stage, provenance in stages.items()}
        return Card(
            index=item.index,
            key=item.key,
            outcome="failed" if failure else record["outcome"],
            fields=item.fields,
            skipped=skipped and failure is None,
            reasons=(failure.reason,) if failure else tuple(record.get("reasons", ())),
            evidence=evidence_of(record),
            detail=failure.detail if failure else "",
            captions=record.get("captions", {}),
            pictures=self._pictures(item, outputs.key),
            links={
                kind: self._address(key, folder)
                for kind, key in own_outputs(item.key, record.get("outputs", {})).items()
            },
            timings=timings,
            # What the manifest says now: an older record knows only what it was told then.
            facts=facts_of({**record, "fields": item.fields}),
        )

    def _address(self, key: str, folder: Path) -> str:
        """Return what opens an output from a report in `folder`; a bucket's address is for reading."""
        url = self._destination.url
        if "://" in url:
            return f"{url}/{key}"
        # Relative, so that report and catalogue can be moved together.
        return quote(os.fsencode(os.path.relpath(f"{url}/{key}", folder)))

    def _pictures(self, item: Item, name: Any) -> dict[str, list[bytes]]:
        """Make the thumbnails by kind; variants are further pictures of the kind `image`."""
        pictures: dict[str, list[bytes]] = {}
        for kind in ("source", "mask", "cutout", *picture_kinds(self._job.recipe)):
            storage, key = (self._source, item.key) if kind == "source" else (self._destination, name(kind))
            limit = self._settings.max_bytes * (1 if kind == "source" else 4)
            try:
                data = storage.get(key, limit=limit).data
                photo = decode(data, max_bytes=len(data), max_pixels=self._settings.max_pixels)
            except (ItemError, StorageError):
                continue  # a failed item has only some of its pictures; the card says why
            image = photo.rgb
            if photo.alpha is not None:
                image.putalpha(photo.alpha)
            family = kind.partition("_")[0]
            side = LARGE_SIDE if kind == "image" else SIDE
            pictures.setdefault(family, []).append(thumbnail(image, side, checkerboard=photo.alpha is not None))
        return pictures


def _worked(provenance: dict[str, Any]) -> float:
    # Waiting for the batch is the queue's time, not the item's.
    phases: dict[str, float] = provenance.get("seconds", {})
    return sum(spent for phase, spent in phases.items() if phase != "wait")
