"""What the commands share: settings with command-line overrides, consoles, opened jobs."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from pydantic import SecretStr
from rich.console import Console

from producer.unserved import Unserved
from shared.errors import UsageError
from shared.printable import printable, to_json
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import redis
    from rich.text import Text

    from shared.progress import Counts


MAX_WIDTH = 1000
"""Columns where there is no terminal."""


class PlainConsole(Console):
    """Shows text as it is: a name with brackets in it is no markup, and one with control characters steers no terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = MAX_WIDTH  # no line of a log, and no cell of a table, is cut or broken

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string, or a table's cell, printable."""
        return super().render_str(printable(text, keep="\n"), **options)


err = PlainConsole(stderr=True)
"""Messages and progress; stdout is for data."""

BrokerOption = typer.Option(None, "--broker", help="Broker address, redis://host:port/db.", show_default=False)
EndpointOption = typer.Option(None, "--endpoint-url", help="S3 endpoint, for anything but AWS.", show_default=False)
JsonOption = typer.Option(False, "--json", help="End stdout with one JSON object.")


def load_settings(**overrides: Any) -> Settings:
    """Build the settings; the command line's values win over the environment's. Raises `UsageError`."""
    broker = overrides.pop("broker", None)
    return Settings.load(broker=SecretStr(broker) if broker is not None else None, **overrides)


def check_report(path: Path, option: str) -> None:
    """Make sure that a report can be written where `option` says, before the work that it tells of. Makes its folder. Raises `UsageError`."""
    why: object = ""
    try:
        if path.exists() and not path.is_file():
            why = "it is a folder, or a device, which a file would replace"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        why = error.strerror or error
    if why:
        raise UsageError(f"cannot write the report to {path} ({why}): give {option} another place")


def watched(show: Callable[[Counts], None], client: redis.Redis) -> Callable[[Counts], None]:
    """Return what shows a job's counts, and tells once when the job stands still for want of workers."""
    unserved = Unserved(client, partial(err.print, soft_wrap=True))

    def tick(counts: Counts) -> None:
        show(counts)
        unserved.look(counts)

    return tick


def print_json(data: Any) -> None:
    """Write one JSON object as the last line of stdout."""
    sys.stdout.write(to_json(data) + "\n")
    sys.stdout.flush()
