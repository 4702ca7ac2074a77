"""Commands that make a catalogue: run, submit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from producer.cli.common import BrokerOption, EndpointOption, JsonOption, err, load_settings, print_json
from producer.cli.telling import tell, tell_failures
from producer.embedded import Stack, scratch
from producer.follow import Display, Summary
from producer.inputs import address, load_recipe, open_source
from producer.launch import env_for
from producer.needs import needs
from producer.recipes import find_recipe
from producer.selection import Selection, parse_since
from producer.session import Session, create_job
from shared.connection import broker_errors, connect
from shared.errors import UsageError
from shared.keys import STAGES
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.jobs import Job
    from shared.progress import Counts
    from shared.recipe import Recipe
    from shared.settings import Settings
    from shared.storage import Storage

ManifestOption = typer.Option(
    None,
    "--manifest",
    help="CSV, JSONL or Parquet of the photos to take: key, and any of id, title, category, prompt, points, box, mask, seed; - for standard input.",
)
RecipeOption = typer.Option(
    None, "--recipe", help="A YAML or JSON file, or the name of a packaged recipe: starter, production, seed, vlm."
)
IncludeOption = typer.Option(None, help="Take only keys that match, such as 'shoes/**'. May be given again.")
ExcludeOption = typer.Option(None, help="Leave out keys that match, such as '*.tmp'. May be given again.")
SinceOption = typer.Option(None, help="Take only photos changed since: a date such as 2026-11-01, or 24h, 7d.")
LimitOption = typer.Option(None, min=1, help="Take only the first N photos.")
SampleOption = typer.Option(None, min=1, help="Take N photos, evenly and repeatably chosen.")
WindowOption = typer.Option(None, help="Unfinished images in the queues at once.")


def _nothing() -> None:
    """Stand in where no embedded workers have to be looked after."""


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
            session.follow(show)
        except KeyboardInterrupt:
            err.print("interrupted; finished photos stay: run the same command again and they are skipped")
            raise
    summary = session.finish(time.monotonic() - start, report)
    if not summary.items:
        err.print(f"no photos at {session.job.source}: check the address", soft_wrap=True)
    tell_failures(session, summary)
    return summary


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


def select(
    manifest: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    modified_since: str | None,
    limit: int | None,
    sample: int | None,
) -> Selection:
    """Gather the options that say which photos to take, and check them. Raises `UsageError`."""
    chosen = Selection(
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        modified_since=parse_since(modified_since) if modified_since else 0,
        limit=limit,
        sample=sample,
        manifest=manifest if manifest in {None, "-"} else str(Path(manifest).absolute()),
    )
    for line in chosen.check():
        err.print(line, soft_wrap=True)
    return chosen


def confirm(
    selection: Selection, ends: tuple[Storage, Storage], recipe: Recipe, most: int | None, *, yes: bool
) -> None:
    """Ask before a job of more than `most` photos. Raises `UsageError` where nobody can answer."""
    if most is None or yes:
        return
    photos = selection.photos(*ends, recipe)
    if sum(1 for _ in zip(range(most + 1), photos, strict=False)) <= most:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"there are more than {most} photos: --yes submits them all the same")
    typer.confirm(f"There are more than {most} photos. Submit them all?", abort=True, err=True)


def detach(job: Job, settings: Settings) -> Path:
    """Leave the feeding to a process of its own, and return its log."""
    log = Path(f"vitrina-{job.id}.log").absolute()
    command = [sys.executable, "-m", "producer.cli", "submit", "--resume", job.id, "--out", job.destination]
    with log.open("ab") as file:
        subprocess.Popen(  # noqa: S603 - our own command
            command,
            env=os.environ | env_for(settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # it outlives this terminal
        )
    return log


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command(epilog="Example:  vitrina run photos --out catalogue --recipe white.yaml --report report.html")
    def run(
        source: str = typer.Argument(help="Folder or s3://bucket/prefix of photos."),
        out: str = typer.Option(..., "--out", help="Folder or s3://bucket/prefix for the outputs."),
        recipe: Path | None = RecipeOption,
        manifest: str | None = ManifestOption,
        include: list[str] | None = IncludeOption,
        exclude: list[str] | None = ExcludeOption,
        modified_since: str | None = SinceOption,
        limit: int | None = LimitOption,
        sample: int | None = SampleOption,
        report: Path | None = typer.Option(None, help="Write the HTML report here."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        window: int | None = WindowOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Make a catalogue of every photo and wait for it, on embedded services or on those of --broker."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, window=window)
        check_broker(settings)
        selection = select(manifest, include, exclude, modified_since, limit, sample)
        photos = open_source(source, settings)
        destination = open_storage(address(out), settings)
        chosen = load_recipe(recipe, destination, settings)
        if "broker" not in settings.model_fields_set:  # the workers will be ours
            check_needs(chosen, settings)
        job = create_job(photos, destination, chosen, selection)
        with services(settings, recipe) as (running, look_after):
            session = Session(job, photos, destination, running)
            return tell(run_job(session, report, look_after), as_json=as_json)

    @app.command(
        epilog="Examples:  vitrina submit s3://shop/photos --out s3://shop/catalogue --broker redis://queue:6379/0"
        "   |   vitrina submit --resume 20261123-142501-3f9a2c"
    )
    def submit(
        source: str | None = typer.Argument(None, help="Folder or s3://bucket/prefix of photos."),
        out: str | None = typer.Option(None, "--out", help="Folder or s3://bucket/prefix for the outputs."),
        resume: str | None = typer.Option(
            None, "--resume", metavar="JOB", help="Go on feeding a job whose producer ended."
        ),
        recipe: Path | None = RecipeOption,
        manifest: str | None = ManifestOption,
        include: list[str] | None = IncludeOption,
        exclude: list[str] | None = ExcludeOption,
        modified_since: str | None = SinceOption,
        limit: int | None = LimitOption,
        sample: int | None = SampleOption,
        priority: bool = typer.Option(False, "--priority", help="Before the photos of other jobs."),
        confirm_over: int | None = typer.Option(None, min=0, help="Ask before submitting more than N photos."),
        yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
        detached: bool = typer.Option(False, "--detach", help="Feed in the background; print the job's id at once."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        window: int | None = WindowOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Feed photos to running workers; prints the job's id when all are queued. Follow it with status."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, window=window)
        check_broker(settings)
        if resume:
            if source or recipe or manifest or include or exclude or modified_since or limit or sample:
                raise UsageError(
                    "a job's photos and recipe never change: give --resume alone, or `vitrina rerun JOB --recipe FILE`"
                )
            session = Session.reopen(resume, address(out) if out else None, settings)
        else:
            if not source or not out:
                raise UsageError("give a source and --out, or --resume JOB")
            selection = select(manifest, include, exclude, modified_since, limit, sample)
            if selection.manifest == "-" and (detached or confirm_over is not None):
                raise UsageError(
                    "standard input can be read only once: write the keys to a file for --detach or --confirm-over"
                )
            photos, destination = open_source(source, settings), open_storage(address(out), settings)
            chosen = load_recipe(recipe, destination, settings)
            confirm(selection, (photos, destination), chosen, confirm_over, yes=yes)
            job = create_job(photos, destination, chosen, selection, priority=priority)
            session = Session(job, photos, destination, settings)
        if detached:
            log = detach(session.job, settings)
            err.print(f"feeding in the background; its log: {log}", soft_wrap=True)
        else:
            with Display(err) as display:
                session.feed(display.show)
        if as_json:
            print_json({"job": session.job.id, "items": session.progress.counts().items})
        else:
            typer.echo(session.job.id)
        return 0
