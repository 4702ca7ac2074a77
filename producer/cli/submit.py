"""The command submit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from producer.cli.common import BrokerOption, EndpointOption, JsonOption, err, load_settings, print_json, watched
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
from producer.cli.run import check_broker
from producer.cli.telling import tell_empty, tell_start
from producer.estimate import estimate
from producer.follow import Display
from producer.inputs import address, load_recipe, open_source
from producer.launch import env_for
from producer.session import Session, create_job
from shared.errors import UsageError
from shared.storage import open_storage

if TYPE_CHECKING:
    from producer.selection import Selection
    from shared.recipe import Recipe
    from shared.settings import Settings
    from shared.storage import Storage


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


def check_log() -> None:
    """Make sure that the log of a process of its own can be written, before there is a job. Raises `UsageError`."""
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        msg = f"--detach writes its log into the working folder, and cannot ({error.strerror}): run it in another"
        raise UsageError(msg) from None


def detach(session: Session) -> None:
    """Leave the feeding to a process of its own, and tell its log."""
    job, settings = session.job, session.settings
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
    err.print(f"feeding in the background; its log: {log}", soft_wrap=True)


def feed(session: Session, *, detached: bool) -> int | None:
    """Queue all photos, and return how many items the job has; None when another process does it."""
    if detached:
        detach(session)
        return None
    with Display(err) as display:
        session.feed(watched(display.show, session.client))
    items = session.progress.counts().items
    if not items:
        tell_empty(session)
    return items


def tell_ahead(
    selection: Selection, ends: tuple[Storage, Storage], recipe: Recipe, price: float | None, *, as_json: bool
) -> None:
    """Say what a job would do."""
    found = estimate(selection.photos(*ends, recipe), *ends, recipe, price)
    for line in found.lines():
        err.print(line, soft_wrap=True)
    if as_json:
        print_json(found.to_dict())


def register(app: typer.Typer) -> None:
    """Add the command."""

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
        dry_run: bool = typer.Option(
            False, "--dry-run", help="Tell what would run, how long and for how much; submit nothing."
        ),
        gpu_hour_price: float | None = typer.Option(None, min=0, help="For --dry-run: what an hour of a device costs."),
        confirm_over: int | None = typer.Option(None, min=0, help="Ask before submitting more than N photos."),
        yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
        detached: bool = typer.Option(False, "--detach", help="Feed in the background; print the job's id at once."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        window: int | None = WindowOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Feed photos to running workers; prints the job's id when all are queued, and on stderr at once. Follow it with status."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, window=window)
        if gpu_hour_price is not None and not dry_run:
            raise UsageError("--gpu-hour-price goes with --dry-run: give both")
        if detached:
            check_log()
        if not dry_run:
            check_broker(settings)
        if resume:
            given = (source, recipe, manifest, include, exclude, modified_since, limit, sample, dry_run)
            session = _reopen(resume, out, settings, given)
        else:
            if not source or not out:
                raise UsageError("give a source and --out, or --resume JOB")
            selection = select(manifest, include, exclude, modified_since, limit, sample)
            ends = open_source(source, settings), open_storage(address(out), settings)
            chosen = load_recipe(recipe, ends[1], settings, bring=not dry_run)
            if dry_run:
                tell_ahead(selection, ends, chosen, gpu_hour_price, as_json=as_json)
                return 0
            confirm(selection, ends, chosen, confirm_over, yes=yes)
            session = Session(create_job(*ends, chosen, selection, priority=priority), *ends, settings)
            # Known from now on, also where another process has yet to start feeding it.
            session.progress.begin(session.job.destination)
        tell_start(session)
        items = feed(session, detached=detached)
        if as_json:
            print_json({"job": session.job.id, "items": items})
        else:
            typer.echo(session.job.id)
        return 1 if items == 0 else 0


def _reopen(job: str, out: str | None, settings: Settings, given: tuple[object, ...]) -> Session:
    if any(given):
        raise UsageError(
            "a job's photos and recipe never change: give --resume alone, or `vitrina rerun JOB --recipe FILE`"
        )
    return Session.reopen(job, address(out) if out else None, settings)
