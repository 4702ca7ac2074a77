"""Commands that run a job's items again, or remove what it made: retry, rerun, purge."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation when the program runs

import typer

from producer import repairs
from producer.cli.common import BrokerOption, EndpointOption, JsonOption, err, load_settings, print_json
from producer.cli.services import check_stage
from producer.cli.status import JobArgument, OutOption, reopen
from producer.cli.telling import tell_start
from producer.follow import Display
from producer.inputs import load_recipe
from shared.errors import JobNotFoundError, UsageError


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command(epilog="Example:  vitrina retry 20261123-142501-3f9a2c --reason unreadable")
    def retry(
        job: str = JobArgument,
        stage: str | None = typer.Option(None, help="Only what failed, or was doubted, in this stage."),
        reason: str | None = typer.Option(None, help="Only what failed, or was doubted, for this reason."),
        review: bool = typer.Option(False, "--review", help="Items that need review, in place of the failed ones."),
        out: str | None = OutOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Run a job's failed or doubtful items again, with its own recipe. Follow it with status."""
        session = reopen(job, out, load_settings(broker=broker, endpoint_url=endpoint_url))
        chosen = check_stage(stage) if stage else None
        with Display(err) as display:
            items = repairs.retry(session, stage=chosen, reason=reason, review=review, tick=display.show)
        told = f"{items} item{'' if items == 1 else 's'} run again"
        err.print(told if items else "no such items: nothing to run again")
        if as_json:
            print_json({"job": job, "items": items})
        return 0

    @app.command(epilog="Example:  vitrina rerun 20261123-142501-3f9a2c --from inpainting --recipe new.yaml")
    def rerun(
        job: str = JobArgument,
        since: str = typer.Option(..., "--from", help="The first stage that the new recipe decides."),
        recipe: Path = typer.Option(
            ...,
            "--recipe",
            help="The new recipe; sections of earlier stages are not used, and those it leaves out stay as they were.",
        ),
        out: str | None = OutOption,
        priority: bool = typer.Option(False, "--priority", help="Before the photos of other jobs."),
        partial: bool = typer.Option(
            False, "--partial", help="Of a job whose photos are not all listed yet, or of a watch: those that are."
        ),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Make the photos of a job again as a new job that keeps the earlier stages. Prints its id."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        old = reopen(job, out, settings)
        chosen = load_recipe(recipe, old.destination, settings)
        new = repairs.rerun(old, check_stage(since), chosen, priority=priority, incomplete=partial)
        tell_start(new)
        with Display(err) as display:
            new.feed(display.show)
        if as_json:
            print_json({"job": new.job.id, "of": job, "items": new.progress.counts().items})
        else:
            typer.echo(new.job.id)
        return 0

    @app.command(epilog="Example:  vitrina purge 20261123-142501-3f9a2c --out s3://shop/catalogue")
    def purge(
        job: str = JobArgument,
        out: str | None = OutOption,
        yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Delete the outputs that a job made, and its records. The photos stay."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        try:
            session = reopen(job, out, settings)
        except JobNotFoundError:
            if not repairs.forget(job, settings):
                raise
            err.print("its records were gone; the broker has forgotten it as well", soft_wrap=True)
            return 0
        if not yes:
            if not err.is_terminal:
                raise UsageError("nobody is there to ask: --yes deletes the outputs without asking")
            typer.confirm(f"Delete what job {job} made at {session.destination.url}?", abort=True, err=True)
        err.print(f"{repairs.purge(session)} outputs deleted", soft_wrap=True)
        return 0
