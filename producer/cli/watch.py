"""The command watch."""

from __future__ import annotations

import logging
import time
from pathlib import Path  # noqa: TC003 - typer reads the annotation when the program runs

import typer

from producer.cli.common import BrokerOption, EndpointOption, err, load_settings
from producer.cli.photos import ExcludeOption, IncludeOption, RecipeOption, SinceOption, WindowOption, select
from producer.cli.run import check_broker
from producer.events import EventQueue
from producer.inputs import address, load_recipe, open_source
from producer.watch import Watch
from shared.errors import BrokerError, JobCancelledError, StorageError
from shared.logs import configure_logging
from shared.storage import open_storage

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Example:  vitrina watch s3://shop/photos --out s3://shop/catalogue --broker redis://queue:6379/0"
    )
    def watch(
        source: str = typer.Argument(help="Folder or s3://bucket/prefix of photos."),
        out: str = typer.Option(..., "--out", help="Folder or s3://bucket/prefix for the outputs."),
        recipe: Path | None = RecipeOption,
        include: list[str] | None = IncludeOption,
        exclude: list[str] | None = ExcludeOption,
        modified_since: str | None = SinceOption,
        every: float = typer.Option(30, min=0.1, help="Seconds between two looks."),
        events: str | None = typer.Option(
            None, "--events", metavar="URL", help="An SQS queue of the bucket's event messages, in place of looking."
        ),
        priority: bool = typer.Option(False, "--priority", help="Before the photos of other jobs."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        window: int | None = WindowOption,
    ) -> int:
        """Feed new and changed photos to running workers as they come, until stopped. Started again, it goes on. Cancelling its job ends it."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, window=window)
        configure_logging(settings)
        check_broker(settings)
        selection = select(None, include, exclude, modified_since, None, None)
        ends = open_source(source, settings), open_storage(address(out), settings)
        chosen = load_recipe(recipe, ends[1], settings)
        arrivals = EventQueue(events, ends, chosen, selection, settings) if events else None
        try:
            with Watch(*ends, chosen, selection, settings, arrivals=arrivals, priority=priority) as watching:
                typer.echo(watching.job)
                told = ""
                while True:
                    _look(watching)
                    if (news := _ended(watching)) != told:
                        log.info(told := news, extra={"action": "watch", "job": watching.job})
                    if not events:
                        time.sleep(every)
        except JobCancelledError as error:
            err.print(str(error), soft_wrap=True)
        except KeyboardInterrupt:
            err.print("stopped; the same command goes on", soft_wrap=True)
        return 0


def _ended(watching: Watch) -> str:
    """Say what has become of the photos so far; nothing while nothing has."""
    counts = watching.counts
    if counts is None or not counts.done + counts.failed:
        return ""
    return f"{counts.done} of {counts.items} done ({counts.needs_review} to review), {counts.failed} failed"


def _look(watching: Watch) -> None:
    """Look once; what a service that runs for months must outlive is logged."""
    try:
        number = watching.look()
        if number:
            log.info("queued %d", number, extra={"action": "watch", "job": watching.job})
    except (BrokerError, StorageError) as error:
        log.warning("%s", error, extra={"action": "watch_failed"})
        time.sleep(5)
