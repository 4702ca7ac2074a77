"""What a job is given: where its photos are, and its recipe."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.recipes import find_recipe
from shared.errors import ObjectMissingError, RecipeError, UsageError
from shared.paths import expanded
from shared.pictures import decode
from shared.recipe import ImageBackground, Recipe
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.settings import Settings
    from shared.storage import Storage


def address(text: str) -> str:
    """Return an address that workers understand whatever their working folder. Raises `UsageError`."""
    if "://" not in text and text.startswith("s3:"):
        raise UsageError(f"{text!r}: did you mean s3://{text[3:].lstrip('/')}? A folder of that name is ./{text}")
    return text if "://" in text else os.path.abspath(expanded(text))  # noqa: PTH100 - removes "..", and unlike resolve() keeps links


def open_source(text: str, settings: Settings) -> Storage:
    """Open where the photos are. Raises `UsageError` when a folder is not there."""
    url = address(text)
    if "://" not in url and not Path(url).is_dir():
        what = "that is a file" if Path(url).exists() else "no such folder"
        raise UsageError(f"{what}: {text}: give a folder of photos or s3://bucket/prefix")
    return open_storage(url, settings)


def load_recipe(
    given: Recipe | Mapping[str, Any] | Path | str | None,
    destination: Storage,
    settings: Settings,
    *,
    bring: bool = True,
) -> Recipe:
    """Read a recipe (a file, a packaged one's name, or its content) and `bring` its background picture into the output storage, where workers find it.

    A picture that a recipe names without a file is looked for in the working folder. Raises `RecipeError`, `StorageError`.
    """
    path = None
    if given is None or isinstance(given, Recipe):
        recipe = given or Recipe()
    elif isinstance(given, (str, Path)):
        path = find_recipe(str(given))
        recipe = Recipe.load(path)
    else:
        recipe = Recipe.from_mapping(dict(given))
    background = recipe.background
    if not isinstance(background, ImageBackground):
        return recipe
    data = _read_background(background.image, path.parent if path else Path(), destination)
    decode(data, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    # Named by its content, so that another picture under the old name makes other outputs.
    key = f"backgrounds/{hashlib.sha256(data).hexdigest()[:16]}{Path(background.image).suffix.lower()}"
    if bring:
        destination.put(key, data)
    return recipe.model_copy(update={"background": background.model_copy(update={"image": key})})


def _read_background(image: str, folder: Path, destination: Storage) -> bytes:
    """Read the picture: the recipe's neighbour or, where there is no such file, what an earlier job brought. Raises `RecipeError`."""
    try:
        file = folder / expanded(image)
        return file.read_bytes()
    except UsageError as error:
        raise RecipeError(f"background.image: {error}") from None
    except FileNotFoundError:
        if not image.startswith("backgrounds/"):
            raise RecipeError(f"background.image: no file {file}: correct the path") from None
    except OSError as error:
        raise RecipeError(f"background.image: cannot read {file}: {error.strerror}") from None
    try:
        return destination.get(image).data
    except ObjectMissingError:
        raise RecipeError(f"background.image: neither a file {file} nor {image} in {destination.url}") from None
