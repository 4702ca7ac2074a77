"""The command keeper."""

from __future__ import annotations

import signal
import threading

import typer

from producer.cli.common import BrokerOption, EndpointOption, load_settings
from producer.inputs import address
from producer.keeper import Keeper
from shared.logs import configure_logging


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example:  vitrina keeper --out s3://shop/catalogue --broker redis://queue:6379/0")
    def keeper(
        out: list[str] | None = typer.Option(
            None,
            "--out",
            help="Output storage whose jobs are restored when the broker comes back empty. May be given again.",
        ),
        every: float | None = typer.Option(None, min=0.1, help="Seconds between two looks."),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Look after all jobs in the foreground: send lost items again, restore progress, write summaries. Run two; one is active."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, look_every=every)
        configure_logging(settings)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        looking = Keeper(settings, [address(text) for text in out or ()])
        if settings.metrics_port:
            from producer.metrics import serve  # noqa: PLC0415 - every other command would wait for it

            serve(looking, settings)
        looking.run(stop)
        return 0
