"""Commands about model files: models list, models fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from producer.cli.common import JsonOption, err, load_settings, print_json
from producer.needs import weights_of
from producer.recipes import find_recipe
from shared.errors import VitrinaError
from shared.models import REGISTRY, HubModel, fetch, fetched, known
from shared.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from shared.models import Model

COMMERCIAL = {True: "commercial use: yes", False: "[yellow]commercial use: no[/]", None: "commercial use: not known"}

app = typer.Typer(
    help="Show and fetch model files.",
    epilog="Examples:  vitrina models list   |   vitrina models fetch   |   vitrina models fetch --recipe production",
    no_args_is_help=True,
)


@app.command("list", epilog="Example:  vitrina models list")
def list_models(as_json: bool = JsonOption) -> None:
    """Show every known model and every fetched one: where from, size, licence, commercial use, memory, and whether it is on disk."""
    settings = load_settings()
    rows = [describe(model, settings.models_dir) for model in [*REGISTRY.values(), *fetched(settings.models_dir)]]
    if as_json:
        print_json({"models": rows})
        return
    console = Console(highlight=False)
    console.print(f"[bold]{'model':<21}{'stage':<14}{'size':>8}  {'memory':>8}  on disk[/]")
    for row in rows:
        sizes = f"{human(row['size']):>8}  {human(row['memory']):>8}"
        console.print(f"[bold]{row['name']:<21}[/]{row['stage']:<14}{sizes}  {row['on_disk']}", soft_wrap=True)
        commit = f" ({row['commit']})" if row["commit"] not in ("", row["revision"]) else ""
        console.print(
            f"    {row['origin']}{commit}\n    {row['licence']}; {COMMERCIAL[row['commercial']]}", soft_wrap=True
        )


def human(size: int) -> str:
    """Write bytes as people do; none at all are not known."""
    if not size:
        return "?"
    billions = size / 1_000_000_000
    return f"{billions:.1f} GB" if billions >= 0.1 else f"{1000 * billions:.1f} MB"  # noqa: PLR2004 - the unit that reads best


def describe(model: Model, models_dir: Path) -> dict[str, Any]:
    """Return what is known of a model as JSON-able values; `on_disk` is `yes`, `missing` or `corrupt`."""
    commit = ""
    try:
        model.find(models_dir)
        there = "yes"
        if isinstance(model, HubModel):
            commit = model.commit(models_dir)
    except VitrinaError as error:
        there = error.reason.removeprefix("model_")
    return {
        "name": model.name,
        "stage": model.stage or "",
        "origin": model.origin,
        "revision": model.revision,
        "commit": commit,
        "size": model.size,
        "memory": model.memory,
        "licence": model.licence,
        "commercial": model.commercial,
        "on_disk": there,
    }


@app.command("fetch", epilog="Example:  vitrina models fetch dreamshaper-8 opus-mt-en-de")
def fetch_models(
    names: list[str] = typer.Argument(None, help="Models to fetch; without names, the starter set."),
    recipe: str | None = typer.Option(
        None, help="Fetch what this recipe needs: a file, or the name of a packaged one."
    ),
) -> None:
    """Download model files and check them."""
    settings = load_settings()
    wanted = list(names or [])
    if recipe:
        wanted += weights_of(Recipe.load(find_recipe(recipe)))
    if not wanted:
        wanted = [model.name for model in REGISTRY.values() if model.starter]
    for name in dict.fromkeys(part for each in wanted for part in (each, *known(each).also)):
        path = fetch(name, settings.models_dir)
        err.print(f"{name}: {path}", soft_wrap=True)
