"""Commands about model files: models list, models fetch."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from producer.cli.common import err, load_settings
from shared.errors import VitrinaError
from shared.models import REGISTRY, fetch, find

app = typer.Typer(help="Show and fetch model files.", no_args_is_help=True)


@app.command("list", epilog="Example:  vitrina models list")
def list_models() -> None:
    """Show every known model: revision, size, licence, commercial use, and whether it is on disk."""
    settings = load_settings()
    table = Table("model", "stage", "revision", "size", "licence", "commercial use", "on disk")
    for name, model in REGISTRY.items():
        try:
            find(name, settings.models_dir)
            there = "yes"
        except VitrinaError as error:
            there = error.reason.removeprefix("model_")
        size = f"{model.size / 1e6:.1f} MB"
        commercial = "yes" if model.commercial else "no"
        table.add_row(name, model.stage, model.revision, size, model.licence, commercial, there)
    Console().print(table)


@app.command("fetch", epilog="Example:  vitrina models fetch u2netp")
def fetch_models(
    names: list[str] = typer.Argument(None, help="Models to fetch; without names, the starter set."),
) -> None:
    """Download model files and check them."""
    settings = load_settings()
    for name in names or REGISTRY:
        path = fetch(name, settings.models_dir)
        err.print(f"{name}: {path}", soft_wrap=True)
