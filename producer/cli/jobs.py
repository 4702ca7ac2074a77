"""Commands about jobs: run, submit, status, report."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from producer.cli.common import (
    BrokerOption,
    EndpointOption,
    JsonOption,
    address,
    err,
    load_recipe,
    load_settings,
    open_source,
    print_json,
)
from producer.collect import REPORT_ITEMS, Collector
from producer.embedded import Stack, scratch
from producer.follow import Display, Summary, follow
from producer.manifest import Manifest
from producer.masks import with_masks
from producer.needs import needs
from producer.recipes import find_recipe
from producer.submit import Submitter, create_job, list_photos
from shared.broker import make_app
from shared.errors import JobForgottenError, JobNotFoundError, StorageRefusedError, UsageError
from shared.jobs import Job, load_summary, save_summary
from shared.keys import STAGES
from shared.progress import Counts, Failure, NoProgress, Progress, broker_errors, connect
from shared.storage import Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.recipe import Recipe
    from shared.settings import Settings

ManifestOption = typer.Option(
    None,
    "--manifest",
    help="CSV or JSONL of the photos to take: key, and any of id, title, category, prompt, points, box, mask, seed.",
)


def _nothing() -> None:
    """Stand in where no embedded workers have to be looked after."""


class Session:
    """One job being worked on, from the producer's side."""

    def __init__(
        self, job: Job, source: Storage, destination: Storage, settings: Settings, manifest: Manifest | None = None
    ) -> None:
        self.manifest = manifest
        self.job = job
        self.source = source
        self.destination = destination
        self.settings = settings
        self.progress: Progress = Progress(connect(settings), job.id)

    @classmethod
    def reopen(cls, job: str, out: str | None, settings: Settings) -> Session:
        """Open a job that was submitted before. Raises `JobNotFoundError`."""
        # Without --broker, a job whose records were named ran on embedded services, and they have gone.
        gone = out is not None and "broker" not in settings.model_fields_set
        where = address(out) if out else Progress(connect(settings), job).destination()
        if where is None:
            raise JobNotFoundError(f"the broker knows no job {job}: give --out, or check the id and --broker")
        destination = open_storage(where, settings)
        record = Job.load(job, destination)
        session = cls(record, open_storage(record.source, settings), destination, settings)
        session.progress = NoProgress() if gone else session.progress
        return session

    def feed(self, show: Callable[[Counts], None]) -> None:
        """Submit every photo of the manifest, or of the source where there is none."""
        app = make_app(self.settings)
        try:
            submitter = Submitter(app, self.progress, self.job, self.destination, window=self.settings.window)
            manifest = self.manifest
            photos = (
                manifest.photos(self.source)
                if manifest
                else list_photos(self.source, self.destination, self.job.recipe)
            )
            submitter.feed(with_masks(photos, self.source, self.job.recipe), show)
        finally:
            app.close()

    def finish(self, seconds: float, report: Path | None) -> Summary:
        """Sum up a job that has ended, write the report and the job's summary."""
        summary = Summary.of(self.job.id, self.progress.counts(), seconds)
        if report:
            summary = self.report(summary, report)
        save_summary(self.destination, self.job.id, summary.to_dict())
        self.progress.expire()
        return summary

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
            msg = f"job {self.job.id} left no summary and the broker knows it no more: run the same command again, finished photos are skipped"
            raise JobForgottenError(msg)
        until = counts.changed if counts.finished and counts.changed else time.time()
        return Summary.of(self.job.id, counts, max(0.0, until - self.job.created))


def run_job(session: Session, report: Path | None, look_after: Callable[[], None] = _nothing) -> Summary:
    """Submit and follow a job to its end."""
    start = time.monotonic()
    err.print(f"job {session.job.id}: {session.job.source} → {session.job.destination}", soft_wrap=True)
    with Display(err) as display:

        def show(counts: Counts) -> None:
            look_after()
            display.show(counts)

        try:
            session.feed(show)
            follow(session.progress, show)
        except KeyboardInterrupt:
            err.print("interrupted; finished photos stay: run the same command again and they are skipped")
            raise
    summary = session.finish(time.monotonic() - start, report)
    if not summary.items:
        err.print(f"no photos at {session.job.source}: check the address", soft_wrap=True)
    tell_failures(session, summary)
    return summary


def tell_failures(session: Session, summary: Summary) -> None:
    """Print how many items failed for which reason, and one of each."""
    if not summary.failed:
        return
    reasons: Counter[str] = Counter()
    examples: dict[str, Failure] = {}
    for failure in session.progress.failures():
        reasons[failure.reason] += 1
        examples.setdefault(failure.reason, failure)
    for reason, number in reasons.most_common():
        example = examples[reason]
        more = f" and {number - 1} more" if number > 1 else ""
        err.print(f"  {reason}: {example.key}{more}: {example.detail}", soft_wrap=True, markup=False)


def tell(summary: Summary, *, as_json: bool) -> int:
    """Print how a job went and return the exit status."""
    line = (
        f"{summary.done} of {summary.items} done ({summary.needs_review} to review, {summary.skipped} skipped), "
        f"{summary.failed} failed, {summary.seconds:.1f} s, {summary.images_per_second:.2f} images/s"
    )
    err.print(line)
    if summary.report:
        err.print(f"report: {summary.report}", soft_wrap=True)
    if as_json:
        print_json(summary.to_dict())
    return 1 if summary.failed or not summary.items else 0


def tell_status(session: Session, *, watch: bool, as_json: bool) -> int:
    """Print how far a job is, at once or when it has ended, and return the exit status."""
    counts = session.progress.counts()
    summary = session.summary(counts)
    # Of what the broker has forgotten, storage still says how it ended.
    known = session.progress.destination() is not None
    if watch and known:
        with Display(err) as display:
            counts = follow(session.progress, display.show)
        summary = session.summary(counts)
    if counts.finished:
        # Nobody may have followed the job to its end. Who may only read the records is told all the same.
        with contextlib.suppress(StorageRefusedError):
            save_summary(session.destination, session.job.id, summary.to_dict(), if_absent=True)
    through = dict(counts.stages) if known else {}
    if as_json:
        ended = {"listed": counts.listed or not known, "finished": counts.finished or not known}
        print_json(summary.to_dict() | ended | {"stages": through})
    else:
        stages = ", ".join(f"{stage} {number}" for stage, number in through.items())
        told = f"{summary.done} of {summary.items} done, {summary.failed} failed"
        typer.echo(f"{told}; {stages}" if stages else told)
    return 1 if summary.failed else 0


def read_manifest(path: Path | None) -> Manifest | None:
    """Check a manifest from end to end, before anything is submitted. Raises `UsageError`."""
    if path is None:
        return None
    manifest = Manifest(path)
    rows = manifest.check()
    ignored = f"; not used: {', '.join(manifest.ignored)}" if manifest.ignored else ""
    err.print(f"{path}: {rows} rows{ignored}", soft_wrap=True)
    return manifest


def check_broker(settings: Settings) -> None:
    """Make sure that a broker that was given answers, before anything is written. Raises `BrokerError`."""
    if "broker" in settings.model_fields_set:
        with broker_errors(), connect(settings) as client:
            client.ping()


def check_needs(recipe: Recipe, settings: Settings) -> None:
    """Look at what a recipe needs, before workers of our own are started for it. Raises `UsageError`."""
    findings = needs(recipe, settings)
    for finding in findings:
        if finding.well is None:
            err.print(f"{finding.name}: {finding.text}", soft_wrap=True)
    wrong = [finding.text for finding in findings if finding.well is False]
    if wrong:
        more = f" (and {len(wrong) - 1} more: `vitrina doctor --recipe …` lists them)" if len(wrong) > 1 else ""
        raise UsageError(f"the job would fail: {wrong[0]}{more}")


@contextlib.contextmanager
def services(settings: Settings, recipe: Path | None) -> Iterator[tuple[Settings, Callable[[], None]]]:
    """Use the broker that was given, or embedded services for the time of one job."""
    if "broker" in settings.model_fields_set:
        yield settings, _nothing
        return
    if recipe:
        settings = settings.model_copy(update={"preload": find_recipe(str(recipe)).absolute()})
    with (
        scratch() as folder,
        Stack(settings, s3=False, workers=STAGES, flower=False, data_dir=folder) as stack,
    ):
        yield stack.settings, stack.look_after


def register(app: typer.Typer) -> None:
    """Add the commands about jobs."""

    @app.command(epilog="Example:  vitrina run photos --out catalogue --recipe white.yaml --report report.html")
    def run(
        source: str = typer.Argument(help="Folder or s3://bucket/prefix of photos."),
        out: str = typer.Option(..., "--out", help="Folder or s3://bucket/prefix for the outputs."),
        recipe: Path | None = typer.Option(
            None, help="A YAML or JSON file, or the name of a packaged recipe: starter, production, seed, vlm."
        ),
        manifest: Path | None = ManifestOption,
        report: Path | None = typer.Option(None, help="Write the HTML report here."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        window: int | None = typer.Option(None, help="Unfinished images in the queues at once."),
        as_json: bool = JsonOption,
    ) -> int:
        """Make a catalogue of every photo and wait for it, on embedded services or on those of --broker."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, window=window)
        check_broker(settings)
        table = read_manifest(manifest)
        photos = open_source(source, settings)
        destination = open_storage(address(out), settings)
        chosen = load_recipe(recipe, destination, settings)
        if "broker" not in settings.model_fields_set:  # the workers will be ours
            check_needs(chosen, settings)
        job = create_job(photos, destination, chosen, manifest=table is not None)
        with services(settings, recipe) as (running, look_after):
            session = Session(job, photos, destination, running, table)
            return tell(run_job(session, report, look_after), as_json=as_json)

    @app.command(epilog="Example:  vitrina submit s3://shop/photos --out s3://shop/catalogue --broker redis://queue/0")
    def submit(
        source: str = typer.Argument(help="Folder or s3://bucket/prefix of photos."),
        out: str = typer.Option(..., "--out", help="Folder or s3://bucket/prefix for the outputs."),
        recipe: Path | None = typer.Option(None, help="YAML or JSON recipe."),
        manifest: Path | None = ManifestOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        window: int | None = typer.Option(None, help="Unfinished images in the queues at once."),
        as_json: bool = JsonOption,
    ) -> int:
        """Feed every photo to running workers; prints the job's id when all are queued. Follow it with status."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, window=window)
        check_broker(settings)
        table = read_manifest(manifest)
        photos = open_source(source, settings)
        destination = open_storage(address(out), settings)
        job = create_job(photos, destination, load_recipe(recipe, destination, settings), manifest=table is not None)
        session = Session(job, photos, destination, settings, table)
        with Display(err) as display:
            session.feed(display.show)
        counts = session.progress.counts()
        if as_json:
            print_json({"job": job.id, "items": counts.items})
        else:
            typer.echo(job.id)
        return 0

    @app.command(epilog="Example:  vitrina status 20261123-142501-3f9a2c --watch")
    def status(
        job: str = typer.Argument(help="The job's id."),
        watch: bool = typer.Option(False, "--watch", help="Follow to the end."),
        out: str | None = typer.Option(None, help="Where the job's records are; known from the broker."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Tell how far a job is. Status 1 when items have failed."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        session = Session.reopen(job, out, settings)
        return tell_status(session, watch=watch, as_json=as_json)

    @app.command(epilog="Example:  vitrina report 20261123-142501-3f9a2c --to report.html")
    def report(
        job: str = typer.Argument(help="The job's id."),
        to: Path = typer.Option(Path("report.html"), "--to", help="The HTML file to write."),
        out: str | None = typer.Option(None, help="Where the job's records are; known from the broker."),
        limit: int = typer.Option(REPORT_ITEMS, min=1, help="Most items shown; failures and reviews come first."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Write a job's report, finished or not. Its records stay as they are."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        session = Session.reopen(job, out, settings)
        summary = session.report(session.summary(session.progress.counts()), to, limit)
        err.print(f"report: {summary.report}", soft_wrap=True)
        return 0
