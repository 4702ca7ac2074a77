"""The command run."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path  # noqa: TC003 - typer reads the annotation when the program runs
from typing import TYPE_CHECKING

import typer

from producer.cli.common import BrokerOption, EndpointOption, JsonOption, check_report, err, load_settings, watched
from producer.cli.photos import (
    ExcludeOption,
    IncludeOption,
    LimitOption,
    ManifestOption,
    RecipeOption,
    SampleOption,
    SinceOption,
    WindowOption,
    select,
)
from producer.cli.telling import tell, tell_empty, tell_failures, tell_start
from producer.embedded import Stack, scratch
from producer.follow import Display, Summary
from producer.inputs import address, load_recipe, open_source
from producer.needs import needs
from producer.recipes import find_recipe
from producer.session import Session, create_job
from shared.connection import broker_errors, connect
from shared.errors import UsageError
from shared.keys import STAGES
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.errors import VitrinaError
    from shared.progress import Counts
    from shared.recipe import Recipe
    from shared.settings import Settings


def _nothing() -> None:
    """Stand in where no embedded workers have to be looked after."""


def run_job(session: Session, report: Path | None, look_after: Callable[[], None] = _nothing) -> Summary:
    """Submit and follow a job to its end."""
    start = time.monotonic()
    tell_start(session)
    with Display(err) as display:
        tick = watched(display.show, session.client)

        def show(counts: Counts) -> None:
            look_after()
            tick(counts)

        session.feed(show)
        session.follow(show)

    def lost(error: VitrinaError) -> None:
        again = f"`vitrina report {session.job.id} --out {session.destination.url} --to FILE` writes it"
        err.print(f"vitrina: no report: {error}. The catalogue is there, and {again}", soft_wrap=True)

    summary = session.finish(time.monotonic() - start, report, lost)
    if not summary.items:
        tell_empty(session)
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
        if report:
            check_report(report, "--report")
        selection = select(manifest, include, exclude, modified_since, limit, sample)
        photos = open_source(source, settings)
        destination = open_storage(address(out), settings)
        chosen = load_recipe(recipe, destination, settings)
        if "broker" not in settings.model_fields_set:  # the workers will be ours
            check_needs(chosen, settings)
        job = create_job(photos, destination, chosen, selection)
        with services(settings, recipe) as (running, look_after):
            session = Session(job, photos, destination, running)
            summary = run_job(session, report, look_after)
            status = tell(summary, as_json=as_json)
            return 1 if report and not summary.report else status
