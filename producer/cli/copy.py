"""The command copy."""

from __future__ import annotations

import typer

from producer.cli.common import EndpointOption, err, load_settings
from producer.copying import copy_objects
from producer.inputs import address, open_source
from shared.errors import UsageError
from shared.storage import open_storage


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:  vitrina copy photos s3://shop/photos   |   vitrina copy s3://shop/catalogue catalogue"
    )
    def copy(
        source: str = typer.Argument(help="Folder or s3://bucket/prefix."),
        to: str = typer.Argument(help="Folder or s3://bucket/prefix."),
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Copy photos into a bucket, or a catalogue out of it. What is there already is left as it is."""
        settings = load_settings(endpoint_url=endpoint_url)
        ends = open_source(source, settings), open_storage(address(to), settings)
        if ends[0].url == ends[1].url:
            raise UsageError("source and target are the same place: give two")
        ends[1].check_writable()
        counted = copy_objects(*ends, lambda told: err.print(f"not copied: {told}", soft_wrap=True))
        refused = f", {counted.refused} not copied: rename them first" if counted.refused else ""
        err.print(f"{counted.copied} copied, {counted.there} there already{refused}", soft_wrap=True)
        return 1 if counted.refused else 0
