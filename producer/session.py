"""One job from the producer's side: made or opened again, fed, followed, summed up."""

from __future__ import annotations

import contextlib
import difflib
import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from producer.collect import REPORT_ITEMS, Collector
from producer.failures import Failures
from producer.follow import Summary, follow
from producer.manifest import look_up
from producer.masks import reads_masks, with_masks
from producer.rebuild import rebuild
from producer.reconcile import Reconciler
from producer.sealing import seal
from producer.selection import Selection
from producer.submit import Submitter
from shared.broker import make_app
from shared.connection import broker_errors, connect
from shared.errors import (
    BrokerError,
    JobForgottenError,
    JobNotFoundError,
    ProgressLostError,
    StorageError,
    StorageRefusedError,
    UsageError,
    VitrinaError,
)
from shared.jobs import Job, list_jobs, load_listed, load_summary, new_job_id, read_photos, save_photos, save_summary
from shared.keys import job_prefix
from shared.lease import Lease, feeding, is_held
from shared.progress import NoProgress, Progress, known_jobs
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shared.jobs import ItemList
    from shared.messages import Photo
    from shared.progress import Counts
    from shared.recipe import Recipe
    from shared.settings import Settings
    from shared.storage import Storage


log = logging.getLogger(__name__)


def create_job(
    source: Storage,
    destination: Storage,
    recipe: Recipe,
    selection: Selection | None = None,
    *,
    priority: bool = False,
) -> Job:
    """Check both ends and write the job's record, with what it takes of a manifest. Raises `UsageError`, `StorageError`."""
    if source.url.rstrip("/") == destination.url.rstrip("/"):
        raise UsageError("the outputs would land among the photos: give --out a folder or prefix of its own")
    next(iter(source.list()), None)  # an unreadable source is told before anything is written
    destination.check_writable()
    chosen = selection or Selection()
    job = Job(
        new_job_id(),
        source.url,
        destination.url,
        recipe,
        created=time.time(),
        fields=bool(chosen.manifest) or reads_masks(recipe) or _has_fields(chosen.job, destination),
        selection=chosen.to_dict(),
        priority=priority,
    )
    if chosen.manifest:
        _keep_photos(job, chosen.photos(source, destination, recipe), destination)
    job.save(destination)
    return job


def _keep_photos(job: Job, photos: Iterator[Photo], destination: Storage) -> None:
    """Write down what a job takes of a manifest, before there is the job: all or, whatever stops it, nothing."""
    try:
        save_photos(destination, job.id, photos)
    except BaseException:  # Ctrl-C as well, which must not leave half a list behind either
        with contextlib.suppress(StorageError):
            for stat in list(destination.list(job_prefix(job.id))):
                destination.delete(stat.key)
        raise


def _has_fields(job: str | None, destination: Storage) -> bool:
    """Tell whether something is said of the photos that are taken over from another job."""
    return job is not None and Job.load(job, destination).fields


def may_know(settings: Settings) -> bool:
    """Tell whether there is a broker to ask for jobs: one that was named, or the usual one where it answers."""
    if "broker" in settings.model_fields_set:
        return True
    try:
        with broker_errors(), connect(settings, quick=True) as client:
            client.ping()
    except BrokerError:
        return False
    return True


def _nothing(_: Counts) -> None:
    """Show nothing."""


class Session:
    """One job being worked on, from the producer's side."""

    def __init__(self, job: Job, source: Storage, destination: Storage, settings: Settings) -> None:
        self.job = job
        self.source = source
        self.destination = destination
        self.settings = settings
        self.client = connect(settings)
        self.progress: Progress = Progress(self.client, job.id)

    @classmethod
    def reopen(cls, job: str, out: str | None, settings: Settings) -> Session:
        """Open a job that was submitted before; `out` is where its records are, if the broker is not to be asked. Raises `JobNotFoundError`."""
        # Without --broker, a job whose records were named may have run on embedded services, which have gone.
        gone = out is not None and not may_know(settings)
        where = out or Progress(connect(settings), job).destination()
        if where is None:
            near = _nearest(job, known_jobs(connect(settings)))
            raise JobNotFoundError(f"the broker knows no job {job}{near}: give --out, or check the id and --broker")
        destination = open_storage(where, settings)
        try:
            record = Job.load(job, destination)
        except JobNotFoundError as error:
            with contextlib.suppress(StorageError):  # there is nothing at all, as the message says
                error = JobNotFoundError(f"{error}{_nearest(job, list(list_jobs(destination)))}")
            raise error from None
        session = cls(record, open_storage(record.source, settings), destination, settings)
        session.progress = NoProgress() if gone else session.progress
        return session

    @property
    def failures(self) -> Failures:
        """Why items failed."""
        return Failures(self.destination, self.progress)

    def ask_broker(self) -> None:
        """Make sure that the broker answers, before anything is changed. Raises `BrokerError`."""
        with broker_errors():
            self.client.ping()

    def fed(self) -> bool:
        """Tell whether a producer is feeding the job. Raises `BrokerError`."""
        return is_held(self.client, feeding(self.job.id))

    @contextlib.contextmanager
    def producing(self, tick: Callable[[Counts], None] = _nothing) -> Iterator[Submitter]:
        """Hold the right to feed the job, and a submitter that does. Raises `LeaseHeldError` when another process is feeding it."""
        app = make_app(self.settings)
        held = f"another producer is feeding job {self.job.id}: follow it with `vitrina status {self.job.id} --watch`"
        try:
            with Lease(self.client, feeding(self.job.id), held) as lease:
                if self.progress.destination() is None:
                    rebuild(self.job, self.destination, self.progress, tick)
                window = self.settings.window
                yield Submitter(app, self.progress, self.job, self.destination, window=window, lease=lease, tick=tick)
        finally:
            app.close()

    def feed(self, tick: Callable[[Counts], None] = _nothing) -> None:
        """Submit every photo that was asked for; goes on where an earlier producer ended, and when the broker comes back empty."""
        selection = Selection.from_dict(dict(self.job.selection))
        if selection.watch:
            raise UsageError(
                f"job {self.job.id} takes photos as they come: `vitrina watch`, as it was started, goes on"
            )
        with self._reconciling() as reconciler:
            told = ""

            def look(counts: Counts) -> None:
                nonlocal told
                tick(counts)
                try:
                    reconciler.look(counts, partial(tick, counts))
                except (BrokerError, StorageError) as error:  # feeding has a patience of its own
                    if str(error) != told:  # once, however long it lasts
                        told = str(error)
                        log.warning("%s", error, extra={"action": "wait", "job": self.job.id})

            while True:
                try:
                    with self.producing(look) as submitter:
                        submitter.catch_up()
                        submitter.feed(self._left(selection, submitter.items))
                except ProgressLostError:
                    continue  # what storage holds is worked out again, and the rest is queued again
                return

    def _left(self, selection: Selection, items: ItemList) -> Iterator[Photo]:
        """List the photos that are not in the job's record yet."""
        if load_listed(self.destination, self.job.id):
            return iter(())
        if selection.manifest:
            photos = read_photos(self.destination, self.job.id, since=items.count)
        else:
            ends = self.source, self.destination
            photos = selection.photos(*ends, self.job.recipe, listed=items.count, last=items.last)
        return with_masks(look_up(photos, self.source), self.source, self.job.recipe)

    def follow(self, tick: Callable[[Counts], None] = _nothing) -> Counts:
        """Wait until nothing of the job is left to do, and send again what the broker has lost. Returns the final counts."""
        with self._reconciling() as reconciler:
            counts = follow(self.progress, tick, lambda counts: reconciler.look(counts, partial(tick, counts)))
            reconciler.gather(counts)
        return counts

    @contextlib.contextmanager
    def _reconciling(self) -> Iterator[Reconciler]:
        """Do for this job, while it is fed or followed, what a keeper would."""
        app = make_app(self.settings)
        try:
            yield Reconciler(app, self.client, self.job, self.destination, self.settings)
        finally:
            app.close()

    def finish(
        self, seconds: float, report: Path | None, lost: Callable[[VitrinaError], object] = lambda _: None
    ) -> Summary:
        """Sum up a job that has ended: write its summary, then the report.

        `lost` is told why a report could not be written; the summary, whose `report` is None then, stands without it.
        """
        summary = Summary.of(self.job.id, self.progress.counts(), seconds)
        seal(self.destination, self.progress, summary)  # first: a report may take minutes, and fail
        self.progress.expire()
        if report is None:
            return summary
        try:
            reported = self.report(summary, report)
        except VitrinaError as error:
            lost(error)
            return summary
        save_summary(self.destination, self.job.id, reported.to_dict())
        return reported

    def report(self, summary: Summary, path: Path, limit: int = REPORT_ITEMS) -> Summary:
        """Write the report and return the summary with its place."""
        collector = Collector(self.job, self.source, self.destination, self.progress, self.settings)
        collector.write(path, summary, limit=limit)
        return replace(summary, report=str(path.absolute()))

    def summary(self, counts: Counts) -> Summary:
        """Tell how the job ended or, while it has not, how far it is. Raises `JobForgottenError` when nobody knows."""
        saved = load_summary(self.destination, self.job.id)
        if saved is not None:
            return Summary.from_dict(saved)
        if self.progress.destination() is None:
            msg = f"job {self.job.id} left no summary and the broker knows it no more: `vitrina status {self.job.id} --from-storage --out …` counts what is there, `vitrina submit --resume {self.job.id} --out …` goes on"
            raise JobForgottenError(msg)
        until = counts.changed if counts.finished and counts.changed else time.time()
        return Summary.of(self.job.id, counts, max(0.0, until - self.job.created))

    def seal_if_ended(self, counts: Counts, summary: Summary) -> None:
        """Write the outcome of a job that nobody followed to its end."""
        if counts.finished:
            # Who may only read the records is told all the same.
            with contextlib.suppress(StorageRefusedError):
                seal(self.destination, self.progress, summary, if_absent=True)


def _nearest(job: str, known: list[str]) -> str:
    near = difflib.get_close_matches(job, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""
