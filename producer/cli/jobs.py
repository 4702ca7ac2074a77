"""Commands about jobs: run, submit, status, report."""

from __future__ import annotations

import contextlib
import tempfile
import time
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
from producer.collect import Collector
from producer.embedded import Stack
from producer.follow import Display, Summary, follow
from producer.manifest import Manifest
from producer.masks import with_masks
from producer.submit import Submitter, create_job, list_photos
from shared.broker import make_app
from shared.errors import JobNotFoundError
from shared.jobs import Job, save_summary
from shared.keys import STAGES
from shared.progress import Counts, Progress, broker_errors, connect
from shared.storage import Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.settings import Settings

REPORT_ITEMS = 5000
"""Cards in a report unless asked for more: about 150 MB of page."""


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
        self.progress = Progress(connect(settings), job.id)

    @classmethod
    def reopen(cls, job: str, out: str | None, settings: Settings) -> Session:
        """Open a job that was submitted before. Raises `JobNotFoundError`."""
        where = address(out) if out else Progress(connect(settings), job).destination()
        if where is None:
            raise JobNotFoundError(f"the broker knows no job {job}: give --out, or check the id and --broker")
        destination = open_storage(where, settings)
        record = Job.load(job, destination)
        return cls(record, open_storage(record.source, settings), destination, settings)

    def feed(self, show: Callable[[Counts], None]) -> None:
        """Submit every photo of the manifest, or of the source where there is none."""
        app = make_app(self.settings)
        try:
            submitter = Submitter(app, self.progress, self.job, self.destination, window=self.settings.window)
            manifest = self.manifest
            photos = manifest.photos(self.source) if manifest else list_photos(self.source, self.destination)
            submitter.feed(with_masks(photos, self.source, self.job.recipe), show)
        finally:
            app.close()

    def finish(self, seconds: float, report: Path | None, limit: int = REPORT_ITEMS) -> Summary:
        """Sum up, write the report and the job's summary."""
        summary = Summary.of(self.job.id, self.progress.counts(), seconds)
        if report:
            summary = replace(summary, report=str(report.absolute()))
            collector = Collector(self.job, self.source, self.destination, self.progress, self.settings)
            collector.write(report, summary, limit=limit)
        save_summary(self.destination, self.job.id, summary.to_dict())
        self.progress.expire()
        return summary


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
    return summary


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


@contextlib.contextmanager
def services(settings: Settings) -> Iterator[tuple[Settings, Callable[[], None]]]:
    """Use the broker that was given, or embedded services for the time of one job."""
    if "broker" in settings.model_fields_set:
        yield settings, _nothing
        return
    with (
        tempfile.TemporaryDirectory(prefix="vitrina-") as folder,
        Stack(settings, s3=False, workers=STAGES, flower=False, data_dir=Path(folder)) as stack,
    ):
        yield stack.settings, stack.look_after


def register(app: typer.Typer) -> None:
    """Add the commands about jobs."""

    @app.command(epilog="Example:  vitrina run photos --out catalogue --recipe white.yaml --report report.html")
    def run(
        source: str = typer.Argument(help="Folder or s3://bucket/prefix of photos."),
        out: str = typer.Option(..., "--out", help="Folder or s3://bucket/prefix for the outputs."),
        recipe: Path | None = typer.Option(None, help="YAML or JSON recipe; without one, the starter models."),
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
        job = create_job(photos, destination, chosen, manifest=table is not None)
        with services(settings) as (running, look_after):
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
        if watch:
            with Display(err) as display:
                follow(session.progress, display.show)
        counts = session.progress.counts()
        summary = Summary.of(job, counts, time.time() - session.job.created)
        through = {stage: counts.stages[stage] for stage in STAGES}
        if as_json:
            print_json(summary.to_dict() | {"listed": counts.listed, "finished": counts.finished, "stages": through})
        else:
            stages = ", ".join(f"{stage} {number}" for stage, number in through.items())
            typer.echo(f"{summary.done} of {summary.items} done, {summary.failed} failed; {stages}")
        return 1 if summary.failed else 0

    @app.command(epilog="Example:  vitrina report 20261123-142501-3f9a2c --to report.html")
    def report(
        job: str = typer.Argument(help="The job's id."),
        to: Path = typer.Option(Path("report.html"), "--to", help="The HTML file to write."),
        out: str | None = typer.Option(None, help="Where the job's records are; known from the broker."),
        limit: int = typer.Option(REPORT_ITEMS, min=1, help="Most items shown; failures and reviews come first."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Write a job's report, finished or not."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        session = Session.reopen(job, out, settings)
        summary = session.finish(time.time() - session.job.created, to, limit)
        err.print(f"report: {summary.report}", soft_wrap=True)
        return 0
