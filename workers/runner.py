"""Runs one stage on one item: skip if done, fetch, model, save, progress. Knows nothing of Celery."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shared.connection import connect
from shared.errors import (
    JobForgottenError,
    MaskMissingError,
    ObjectMissingError,
    SourceChangedError,
    StorageError,
)
from shared.jobs import Job
from shared.keys import STAGES, StageName, mask_key
from shared.pictures import pixels
from shared.plan import Outputs, Plan, chosen
from shared.progress import Progress
from shared.provenance import Provenance
from shared.recipe.picture import MAX_SIDE
from shared.storage import open_storage
from workers import metrics
from workers.batcher import BatcherClosedError, Pending
from workers.job import OpenJob, Pages
from workers.memory import BYTES_PER_PIXEL, OUTPUT_BYTES_PER_PIXEL, SHARE, Budget, Share, machine_bytes
from workers.models import LoadedModels
from workers.registry import make_model
from workers.stage import Result, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.messages import Item
    from shared.recipe import ModelSection
    from shared.settings import Settings
    from shared.storage import Blob, Storage
    from workers.stage import Model

log = logging.getLogger(__name__)

JOBS_KEPT = 16
"""Jobs whose recipe and storages a worker keeps open."""


GIVEN = frozenset({"source", "supplied_mask", "background"})
"""What a model may read of people's files; everything else is an output of an earlier stage."""


class Clock:
    """Seconds spent in each phase of one item."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase that began at the last lap."""
        now = time.perf_counter()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 4)
        self._last = now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count part of one phase as another."""
        self.seconds[target] = round(seconds, 4)
        self.seconds[source] = round(max(0.0, self.seconds[source] - seconds), 4)


class Runner:
    """One stage of one worker process. `run` is called from many threads."""

    def __init__(
        self,
        stage: StageName,
        settings: Settings,
        *,
        make: Callable[[StageName, ModelSection, Settings], Model[Any, Any]] = make_model,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Serve one stage; `stopping` tells whoever waits for memory that the worker is shutting down."""
        self.stage = stage
        self._budget = Budget(settings.picture_memory or machine_bytes() // SHARE, stopping)
        self._largest_output = OUTPUT_BYTES_PER_PIXEL * max(settings.max_pixels, MAX_SIDE**2)
        self.settings = settings
        self.models = LoadedModels(stage, settings, make=make, stopping=stopping)
        self._redis = connect(settings)
        self._jobs: dict[str, OpenJob] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Finish the batches and close the connections."""
        self.models.close()
        self._redis.close()

    def progress(self, job: str) -> Progress:
        """Return a job's progress, whether or not the job itself can be read."""
        return Progress(self._redis, job)

    def open(self, job: str) -> OpenJob:
        """Open a job's records and storages; the last few are kept. Raises `JobForgottenError`, `JobNotFoundError`, `StorageError`."""
        with self._lock:
            known = self._jobs.get(job)
        if known:
            return known
        progress = self.progress(job)
        address = progress.destination()
        if address is None:
            msg = f"the broker knows no job {job}: submit it again"
            raise JobForgottenError(msg)
        destination = open_storage(address, self.settings)
        record = Job.load(job, destination)
        pages = Pages(record, destination) if record.fields else None
        source = open_storage(record.source, self.settings)
        opened = OpenJob(record, Plan(record.recipe), source, destination, progress, pages)
        with self._lock:
            while len(self._jobs) >= JOBS_KEPT:
                self._jobs.pop(next(iter(self._jobs)))
            return self._jobs.setdefault(job, opened)

    def storage_answers(self, job: str) -> bool:
        """Whether a job's storages answer at all."""
        try:
            return self.open(job).answers()
        except StorageError:
            return False

    def load(self, item: Item) -> None:
        """Load the model that an item needs, unless it is loaded. Raises `VitrinaError`, `HandedBackError`."""
        self.models.get(chosen(self.open(item.job).plan.recipe, self.stage))

    def run(self, item: Item) -> Provenance:
        """Bring one item through this stage, or find that it already is. Raises `VitrinaError` for what went wrong with it."""
        opened = self.open(item.job)
        if not opened.pages:
            return self._run(opened, item)
        item = replace(item, fields=opened.pages.fields(item.index))
        try:
            return self._run(opened, item)
        except SourceChangedError:
            # A mask that was replaced, and a retry that looked it up: the page was written anew since we read it.
            fields = opened.pages.fields(item.index, again=True)
            if fields == item.fields:
                raise
            return self._run(opened, replace(item, fields=fields))

    def _run(self, opened: OpenJob, item: Item) -> Provenance:
        outputs = opened.plan.outputs(item.key, item.etag, item.fields)
        stat = opened.destination.head(outputs.marker(self.stage))
        if stat is not None:
            provenance = replace(Provenance.from_metadata(stat.metadata), seconds={})  # those of an earlier run
        else:
            provenance = self._make_outputs(opened, item, outputs)
        opened.progress.finish(self.stage, item.index, ran=provenance.job == item.job, review=bool(provenance.reasons))
        metrics.count(self.stage, "skipped" if stat else "needs_review" if provenance.reasons else "done")
        log.info(
            "%s %s",
            "done" if stat is None else "skipped",
            item.key,
            extra={
                "action": "done" if stat is None else "skipped",
                "job": item.job,
                "key": item.key,
                "stage": self.stage,
                "seconds": round(sum(provenance.seconds.values()), 3),
            },
        )
        return provenance

    def _make_outputs(self, opened: OpenJob, item: Item, outputs: Outputs) -> Provenance:
        clock = Clock()
        try:
            section = chosen(opened.plan.recipe, self.stage)
            reads = self.models.get(section)[0].reads(opened.plan.recipe)
            clock.lap("model")
            with self._budget.taking(sum(map(self._limit, reads))) as share:
                clock.lap("room")
                return self._within(share, opened, item, outputs, reads, clock)
        except BaseException:
            clock.lap("unfinished")
            raise
        finally:
            metrics.observe(self.stage, clock.seconds)

    def _within(
        self, share: Share, opened: OpenJob, item: Item, outputs: Outputs, reads: tuple[str, ...], clock: Clock
    ) -> Provenance:
        """Make the outputs within a share of the memory; files and pictures are gone when this returns."""
        work = self._fetch(opened, item, outputs, reads)
        clock.lap("fetch")
        files = [work.source, *work.inputs.values()]
        held = sum(map(len, files))
        self._budget.work(share, held, self._work_bytes(files))
        clock.lap("room")
        result = self._made(chosen(opened.plan.recipe, self.stage), work, clock)
        metrics.doubted(self.stage, result.reasons)
        self._budget.keep(share, held + sum(len(artifact.data) for artifact in result.artifacts.values()))
        provenance = self._provenance(opened, item, work, result, clock)
        self._save(opened, item, outputs, work, result, provenance)
        clock.lap("save")
        return provenance

    def _limit(self, kind: str) -> int:
        """Return how many bytes a file may have that a model reads."""
        return self.settings.max_bytes if kind in GIVEN else self._largest_output

    def _work_bytes(self, files: list[bytes]) -> int:
        """Estimate what a photo takes on its way beside its files, from their headers."""
        return BYTES_PER_PIXEL[self.stage] * max(pixels(file, self.settings.max_pixels) for file in files)

    def _provenance(self, opened: OpenJob, item: Item, work: Work, result: Result, clock: Clock) -> Provenance:
        # What was in doubt before stays in doubt: a picture made from a doubtful mask needs the same look.
        before = [reason for stage in work.upstream.values() for reason in stage.reasons]
        return Provenance(
            job=item.job,
            stage=self.stage,
            model=chosen(opened.plan.recipe, self.stage).model,
            revision=opened.plan.revision(self.stage),
            reasons=tuple(dict.fromkeys([*before, *result.reasons])),
            seed=work.seed,
            measures=dict(result.measures),
            seconds=clock.seconds,
        )

    def _made(self, section: ModelSection, work: Work, clock: Clock) -> Result:
        """Take one item through the model's verbs. Nothing else holds a model for long: it may have to make room."""
        model, batcher = self.models.get(section)
        prepared = model.prepare(work)
        clock.lap("prepare")
        while True:
            with suppress(BatcherClosedError):
                pending: Pending[Any] = batcher.submit(prepared)
                break
            del model, batcher  # another job's model took its place, and waits for its memory
            model, batcher = self.models.get(section)
        output = pending.result()
        clock.lap("wait")
        clock.move("wait", "infer", pending.seconds)
        result = model.finish(work, prepared, output)
        clock.lap("finish")
        return result

    def _fetch(self, opened: OpenJob, item: Item, outputs: Outputs, reads: tuple[str, ...]) -> Work:
        recipe = opened.plan.recipe
        source = b""
        inputs: dict[str, bytes] = {}
        upstream: dict[str, Provenance] = {}
        for stage in STAGES[: STAGES.index(self.stage)]:
            upstream[stage] = self._upstream(opened.destination, outputs, stage, reads, inputs)
        for kind in reads:
            if kind == "source":
                source = self._source(opened.source, item).data
            elif kind == "supplied_mask":
                inputs[kind] = supplied_mask(opened.source, item, recipe.segmentation.mask_key, self.settings)  # type: ignore[union-attr] # only that model reads it
            elif kind == "background":
                inputs[kind] = opened.destination.get(recipe.background.image, limit=self.settings.max_bytes).data  # type: ignore[union-attr] # as above
        seed = int(outputs.fingerprints[self.stage], 16) & 0x7FFFFFFF
        metrics.BYTES.labels(self.stage, "read").inc(len(source) + sum(map(len, inputs.values())))
        return Work(item.key, recipe, source, inputs, seed, item.fields, upstream)

    def _source(self, source: Storage, item: Item) -> Blob:
        blob = source.get(item.key, limit=self.settings.max_bytes)
        if blob.stat.etag != item.etag:
            raise SourceChangedError("the photo changed after it was listed: submit the job again")
        return blob

    def _upstream(
        self, storage: Storage, outputs: Outputs, stage: StageName, reads: tuple[str, ...], inputs: dict[str, bytes]
    ) -> Provenance:
        marker = outputs.marker(stage)
        metadata = None
        for kind, key in outputs.keys[stage].items():
            if kind in reads:
                blob = storage.get(key, limit=self._largest_output)
                inputs[kind] = blob.data
                if key == marker:
                    metadata = blob.stat.metadata
        if metadata is None:
            stat = storage.head(marker)
            metadata = stat.metadata if stat else {}
        return Provenance.from_metadata(metadata)

    def _save(
        self, opened: OpenJob, item: Item, outputs: Outputs, work: Work, result: Result, provenance: Provenance
    ) -> None:
        metadata = provenance.to_metadata()
        for kind, key in outputs.keys[self.stage].items():
            artifact = result.artifacts[kind]
            data = artifact.data
            if kind == "caption":
                data = item_record(item, outputs, work, provenance, json.loads(data))
            opened.put(key, data, content_type=artifact.content_type, metadata=metadata)
            metrics.BYTES.labels(self.stage, "written").inc(len(data))


def supplied_mask(source: Storage, item: Item, pattern: str, settings: Settings) -> bytes:
    """Read the mask that lies beside a photo. Raises `MaskMissingError`, `SourceChangedError`."""
    mask = mask_key(item.key, item.fields.get("mask") or pattern)
    try:
        blob = source.get(mask, limit=settings.max_bytes)
    except ObjectMissingError:
        msg = f"no mask at {mask}: put one there, or correct segmentation.mask_key"
        raise MaskMissingError(msg) from None
    if blob.stat.etag != item.fields.get("mask_etag"):
        raise SourceChangedError("the mask changed after it was listed: submit the job again")
    return blob.data


def item_record(item: Item, outputs: Outputs, work: Work, provenance: Provenance, caption: dict[str, Any]) -> bytes:
    """Write the record of a finished item: the caption with everything that led to it."""
    stages = {**work.upstream, provenance.stage: provenance}
    record = {
        "version": 1,
        "key": item.key,
        "etag": item.etag,
        **({"fields": dict(item.fields)} if item.fields else {}),
        "outcome": "needs_review" if provenance.reasons else "done",
        "reasons": provenance.reasons,
        **caption,
        "outputs": {kind: key for kinds in outputs.keys.values() for kind, key in kinds.items()},
        "recipe": work.recipe.model_dump(mode="json"),
        "stages": {name: replace(stage, job="").to_dict() for name, stage in stages.items()},
    }
    return json.dumps(record, ensure_ascii=False, indent=1).encode()
