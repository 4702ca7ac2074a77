"""The options that say what a job takes: photos, recipe, window."""

from __future__ import annotations

from pathlib import Path

import typer

from producer.cli.common import err
from producer.selection import Selection, parse_since

ManifestOption = typer.Option(
    None,
    "--manifest",
    help="CSV, JSONL or Parquet of the photos to take: key, and any of id, title, category, prompt, points, box, mask, seed; - for standard input, with keys, one a line, or JSON lines.",
)
RecipeOption = typer.Option(
    None, "--recipe", help="A YAML or JSON file, or the name of a packaged recipe: starter, production, seed, vlm."
)
IncludeOption = typer.Option(None, help="Take only keys that match, such as 'shoes/**'. May be given again.")
ExcludeOption = typer.Option(None, help="Leave out keys that match, such as '*.tmp'. May be given again.")
SinceOption = typer.Option(None, help="Take only photos changed since: a date such as 2026-11-01, or 24h, 7d.")
LimitOption = typer.Option(None, min=1, help="Take only the first N photos.")
SampleOption = typer.Option(None, min=1, help="Take N photos, evenly and repeatably chosen.")
WindowOption = typer.Option(None, min=1, help="Unfinished images in the queues at once.")


def select(
    manifest: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    modified_since: str | None,
    limit: int | None,
    sample: int | None,
) -> Selection:
    """Gather the options that say which photos to take, and check them. Raises `UsageError`."""
    chosen = Selection(
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        modified_since=parse_since(modified_since) if modified_since else 0,
        limit=limit,
        sample=sample,
        manifest=manifest if manifest in {None, "-"} else str(Path(manifest).absolute()),
    )
    notes = chosen.check()
    if chosen.manifest:
        err.print(f"{chosen.table.name}: {chosen.table.rows:,} rows", soft_wrap=True)
    for line in notes:
        err.print(line, soft_wrap=True)
    return chosen
