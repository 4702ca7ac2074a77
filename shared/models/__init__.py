"""Model files: which there are, where they come from, under which licence, and whether they are the published ones."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from shared.errors import ModelMissingError, UsageError
from shared.models.catalogue import REGISTRY, from_hub, opus_mt
from shared.models.hub import HubModel
from shared.models.record import Model

__all__ = ["REGISTRY", "HubModel", "Model", "fetch", "find", "known", "locate", "weights_revision"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+")


def known(name: str) -> Model:
    """Return the record of a preset, of any opus-mt pair, or of `owner/name@revision` on the hub. Raises `UsageError`."""
    if name in REGISTRY:
        return REGISTRY[name]
    if re.fullmatch(r"opus-mt-[a-z]{2,3}-[a-z]{2,3}", name):
        return opus_mt(name)
    if _HUB_ID.fullmatch(name) and ".." not in name:
        return from_hub(name)
    near = difflib.get_close_matches(name, REGISTRY, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(REGISTRY)}"
    raise UsageError(f"no model {name!r}: {hint} Any other is named owner/name@revision or by its folder")


def find(name: str, models_dir: Path) -> Path:
    """Return the path of a model's checked file or folder. Raises `ModelMissingError`, `ModelCorruptError`, `UsageError`."""
    return known(name).find(models_dir)


def fetch(name: str, models_dir: Path) -> Path:
    """Bring a model to disk unless it is there, and return its path. Raises `UsageError`, `ModelCorruptError`."""
    return known(name).fetch(models_dir)


def locate(weights: str, models_dir: Path) -> Path:
    """Return where a recipe's `weights` lie: a model's file or folder, or the local path itself.

    Raises `ModelMissingError`, `ModelCorruptError`.
    """
    path = Path(weights).expanduser()
    # A preset's name is never taken for a folder that happens to lie in the working folder.
    if ("/" in weights or "\\" in weights) and "@" not in weights:
        if path.exists():
            return path
        raise ModelMissingError(f"no model at {weights}: correct the path, or name the hub's owner/name@revision")
    try:
        return find(weights, models_dir)
    except UsageError as error:
        raise error if isinstance(error, ModelMissingError) else ModelMissingError(str(error)) from None


def weights_revision(weights: str) -> str:
    """Return the revision of a recipe's `weights`; empty for a local path, whose content is its owner's."""
    if weights in REGISTRY:
        return REGISTRY[weights].revision
    return weights.partition("@")[2]
