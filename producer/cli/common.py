"""What the commands share: settings with command-line overrides, consoles, opened jobs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console

from producer.recipes import find_recipe
from shared.errors import ObjectMissingError, RecipeError, UsageError
from shared.pictures import decode
from shared.recipe import ImageBackground, Recipe
from shared.settings import Settings
from shared.storage import open_storage

if TYPE_CHECKING:
    from shared.storage import Storage

err = Console(stderr=True, highlight=False)
"""Messages and progress; stdout is for data."""

BrokerOption = typer.Option(None, "--broker", help="Broker address, redis://host:port/db.", show_default=False)
EndpointOption = typer.Option(None, "--endpoint-url", help="S3 endpoint, for anything but AWS.", show_default=False)
JsonOption = typer.Option(False, "--json", help="End stdout with one JSON object.")


def load_settings(**overrides: Any) -> Settings:
    """Build the settings; the command line's values win over the environment's. Raises `UsageError`."""
    given = {name: value for name, value in overrides.items() if value is not None}
    if isinstance(given.get("broker"), str):
        given["broker"] = SecretStr(given["broker"])
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(f"VITRINA_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise UsageError(f"wrong setting: {problems}") from None


def address(text: str) -> str:
    """Return an address that workers understand whatever their working folder."""
    return text if "://" in text else os.path.abspath(Path(text).expanduser())  # noqa: PTH100 - removes "..", and unlike resolve() keeps links


def open_source(text: str, settings: Settings) -> Storage:
    """Open where the photos are. Raises `UsageError` when a folder is not there."""
    url = address(text)
    if "://" not in url and not Path(url).is_dir():
        raise UsageError(f"no such folder: {text}: give a folder of photos or s3://bucket/prefix")
    return open_storage(url, settings)


def load_recipe(path: Path | None, destination: Storage, settings: Settings) -> Recipe:
    """Read the recipe and bring its background picture into the output storage, where workers find it."""
    path = find_recipe(str(path)) if path else None
    recipe = Recipe.load(path) if path else Recipe()
    background = recipe.background
    if not isinstance(background, ImageBackground):
        return recipe
    data = _read_background(background.image, path.parent if path else Path(), destination)
    decode(data, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    # Named by its content, so that another picture under the old name makes other outputs.
    key = f"backgrounds/{hashlib.sha256(data).hexdigest()[:16]}{Path(background.image).suffix.lower()}"
    destination.put(key, data)
    return recipe.model_copy(update={"background": background.model_copy(update={"image": key})})


def _read_background(image: str, folder: Path, destination: Storage) -> bytes:
    """Read the picture: the recipe's neighbour or, where there is no such file, what an earlier job brought. Raises `RecipeError`."""
    file = folder / Path(image).expanduser()
    try:
        return file.read_bytes()
    except FileNotFoundError:
        if not image.startswith("backgrounds/"):
            raise RecipeError(f"background.image: no file {file}: correct the path") from None
    except OSError as error:
        raise RecipeError(f"background.image: cannot read {file}: {error.strerror}") from None
    try:
        return destination.get(image).data
    except ObjectMissingError:
        raise RecipeError(f"background.image: neither a file {file} nor {image} in {destination.url}") from None


def print_json(data: Any) -> None:
    """Write one JSON object as the last line of stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()
