"""Recipes that come with Vitrina, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from shared.errors import UsageError
from shared.paths import expanded

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(text: str) -> Path:
    """Return the file that `--recipe` means: an existing file, or a packaged recipe's name. Raises `UsageError`."""
    path = expanded(text)
    if path.exists():
        return path
    if text in names():
        return FOLDER / f"{text}.yaml"
    packaged = f"packaged ones are {', '.join(names())}"
    if path.suffix or "/" in text:
        raise UsageError(f"no recipe file {text}: correct the path, or name one that comes along ({packaged})")
    near = difflib.get_close_matches(text, names(), 1)
    hint = f"did you mean {near[0]}?" if near else f"{packaged}."
    raise UsageError(f"no recipe {text!r}: {hint} Any other is given by its file")
