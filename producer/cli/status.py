"""Commands that look at jobs: status, jobs, report."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from producer.cli.common import (
    BrokerOption,
    EndpointOption,
    JsonOption,
    PlainConsole,
    check_report,
    err,
    load_settings,
    print_json,
    watched,
)
from producer.collect import REPORT_ITEMS
from producer.follow import Display, Summary
from producer.inputs import address
from producer.pace import tell_left, tell_stages
from producer.rebuild import counted
from producer.session import Session, may_know
from producer.status import Surroundings, feeder, state_of
from producer.status import status as full_status
from shared.connection import connect
from shared.errors import JobNotFoundError, UsageError, VitrinaError
from shared.jobs import Job, list_jobs, load_summary, new_job_id
from shared.lease import feeding, is_held
from shared.progress import NoProgress, Progress, known_jobs
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from shared.settings import Settings

JobArgument = typer.Argument(help="The job's id.")
OutOption = typer.Option(None, "--out", help="Where the job's records are; known from the broker.")


def reopen(job: str, out: str | None, settings: Settings) -> Session:
    """Open a job that was submitted before. Raises `JobNotFoundError`."""
    return Session.reopen(job, address(out) if out else None, settings)


def look_around(session: Session) -> str:
    """Say in a line what a job waits for."""
    around = Surroundings.of(session.client, session.progress, session.settings)
    # Counted afterwards: a producer that ends meanwhile has listed everything.
    state = state_of(session.progress.counts(), fed=around.fed)
    return f"{around.line()} · {feeder(session.job)}" if state == "unfed" else around.line()


def tell_status(session: Session, *, watch: bool, as_json: bool) -> int:
    """Print how far a job is, at once or when it has ended, and return the exit status."""
    # Of what the broker has forgotten, storage still says how it ended.
    known = session.progress.destination() is not None
    if watch and known:
        with Display(err, partial(look_around, session)) as display:
            session.follow(watched(display.show, session.client))
    around = Surroundings.of(session.client, session.progress, session.settings) if known else None
    # Counted afterwards: a producer that ends meanwhile has listed everything.
    counts = session.progress.counts()
    summary = session.summary(counts)
    session.seal_if_ended(counts, summary)
    if as_json:
        ended = {} if known else {"listed": True, "finished": True, "stages": {}}
        print_json(full_status(summary, counts, around) | ended)
    else:
        told = f"{summary.done} of {summary.items} done ({summary.needs_review} to review), {summary.failed} failed"
        if around is None:
            typer.echo(f"finished: {told}")
        else:
            state = state_of(counts, fed=around.fed)
            stages = tell_stages({stage: (number, around.rates.get(stage)) for stage, number in counts.stages.items()})
            typer.echo("; ".join(filter(None, (f"{state}: {told}", stages, tell_left(around.eta_seconds)))))
            typer.echo(around.line())
            if state == "unfed":
                typer.echo(feeder(session.job))
    return 1 if summary.failed else 0


def tell_stored(session: Session, *, as_json: bool) -> int:
    """Count a job from its outputs alone, print that, and return the exit status."""
    with Display(err) as display:
        counts = counted(session.job, session.destination, display.show)
    summary = Summary.of(session.job.id, counts, max(0.0, time.time() - session.job.created))
    if as_json:
        print_json(full_status(summary, counts, None) | {"state": "finished" if counts.finished else "unknown"})
    else:
        stages = ", ".join(f"{stage} {number}" for stage, number in counts.stages.items())
        listed = "" if counts.listed else "; the source was not listed to its end"
        typer.echo(f"in storage: {summary.done} of {summary.items} done, {summary.failed} failed; {stages}{listed}")
    return 1 if summary.failed else 0


def rows(out: str | None, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield what is known of each job, the newest first: those whose records are at `out`, or those the broker knows."""
    client = connect(settings)
    if out:
        destination = open_storage(address(out), settings)
        places = [(job, destination) for job in reversed(list(list_jobs(destination)))]
    else:
        known = [(job, Progress(client, job).destination()) for job in known_jobs(client)]
        places = [(job, open_storage(where, settings)) for job, where in known if where]
    asked = not out or may_know(settings)
    for name, destination in places:
        progress = Progress(client, name) if asked else NoProgress()
        fed = not asked or is_held(client, feeding(name))
        counts = progress.counts()
        saved: dict[str, Any] | None = None
        try:
            saved = load_summary(destination, name)
            job = Job.load(name, destination)
            ends = {"source": job.source, "out": job.destination}
        except JobNotFoundError:
            ends = {"source": f"its records are gone: `vitrina purge {name}`", "out": destination.url}
        except VitrinaError as error:  # one that cannot be read hides no other
            ends = {"source": str(error), "out": destination.url}
        # Neither sealed nor in the broker, it is unknown: `submit --resume` goes on.
        state = "finished" if saved is not None and counts.state == "running" else state_of(counts, fed=fed)
        told: dict[str, Any] = saved or asdict(counts)
        kept = {key: told[key] for key in ("items", "done", "needs_review", "failed")}
        yield {"job": name, "state": state, **kept, **ends}


def show(found: Iterator[dict[str, Any]]) -> None:
    """Print a table of jobs."""
    table = Table(box=None)
    table.add_column("job", no_wrap=True, min_width=len(new_job_id()))  # it is copied from here
    for name in ("state", "items", "done", "review", "failed", "source"):
        table.add_column(name, overflow="fold")
    states = set()
    for row in found:
        states.add(row["state"])
        numbers = (str(row[key]) for key in ("items", "done", "needs_review", "failed"))
        table.add_row(row["job"], row["state"], *numbers, row["source"])
    if not table.row_count:
        err.print("no jobs")
        return
    PlainConsole().print(table)
    if "unfed" in states:
        err.print(
            "unfed: not listed to its end, and nobody feeds it: `vitrina submit --resume JOB` goes on", soft_wrap=True
        )


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command(epilog="Example:  vitrina status 20261123-142501-3f9a2c --watch")
    def status(
        job: str = JobArgument,
        watch: bool = typer.Option(False, "--watch", help="Follow to the end."),
        from_storage: bool = typer.Option(False, "--from-storage", help="Count the outputs; ask no broker."),
        out: str | None = OutOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        as_json: bool = JsonOption,
    ) -> int:
        """Tell how far a job is. Status 1 when items have failed."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        if from_storage and (watch or not out):
            raise UsageError("--from-storage needs --out, where the job's records are, and has nothing to watch")
        session = reopen(job, out, settings)
        return (
            tell_stored(session, as_json=as_json)
            if from_storage
            else tell_status(session, watch=watch, as_json=as_json)
        )

    @app.command(epilog="Example:  vitrina jobs --broker redis://queue:6379/0   |   vitrina jobs --out catalogue")
    def jobs(
        out: str | None = typer.Option(
            None, "--out", help="List the jobs whose records are here, without a broker too."
        ),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        as_json: bool = typer.Option(False, "--json", help="One JSON object a line."),
    ) -> int:
        """List jobs, the newest first."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        found = rows(out, settings)
        if as_json:
            for row in found:
                print_json(row)
        else:
            show(found)
        return 0

    @app.command(epilog="Example:  vitrina report 20261123-142501-3f9a2c --to report.html")
    def report(
        job: str = JobArgument,
        to: Path = typer.Option(Path("report.html"), "--to", help="The HTML file to write."),
        out: str | None = OutOption,
        limit: int = typer.Option(REPORT_ITEMS, min=1, help="Most items shown; failures and reviews come first."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Write a job's report, finished or not. Its records stay as they are."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        check_report(to, "--to")
        session = reopen(job, out, settings)
        summary = session.report(session.summary(session.progress.counts()), to, limit)
        err.print(f"report: {summary.report}", soft_wrap=True)
        return 0
