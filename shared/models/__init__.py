"""Model files: which there are, where they come from, under which licence, and whether they are the published ones."""

from __future__ import annotations

import difflib
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models.catalogue import REGISTRY, from_address, from_hub, opus_mt
from shared.models.hub import HubModel
from shared.models.record import COMPLETE, Model
from shared.paths import expanded

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["REGISTRY", "HubModel", "Model", "fetch", "fetched", "find", "known", "locate", "weights_revision"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+(:[\w./-]+)?")
_ADDRESS = re.compile(r"https://[\w.:-]+(/[\w.+~%-]+)*/[\w.+-]+\.(pth|pt|safetensors)")
# No user, no query: passwords and signatures would lie in every recipe and record.


def known(name: str) -> Model:
    """Return the record of a preset, of any opus-mt pair, of `owner/name@revision` or `owner/name@revision:file` on the hub, or of an https address.

    Raises `UsageError`.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if re.fullmatch(r"opus-mt-[a-z]{2,3}-[a-z]{2,3}", name):
        return opus_mt(name)
    if _HUB_ID.fullmatch(name) and ".." not in name:
        return from_hub(name)
    if "://" in name:
        if _ADDRESS.fullmatch(name) and "/.." not in name:
            return from_address(name)
        raise UsageError(f"no model at {name}: an address must be https, plain, and end in .pth, .pt or .safetensors")
    raise UsageError(
        f"no model {name!r}: take one of `vitrina models list`, a hub id owner/name@revision, an https address or a folder{_near(name)}"
    )


def find(name: str, models_dir: Path) -> Path:
    """Return the path of a model's checked file or folder. Raises `ModelMissingError`, `ModelCorruptError`, `UsageError`."""
    return known(name).find(models_dir)


def fetch(name: str, models_dir: Path) -> Path:
    """Bring a model to disk unless it is there, and return its path. Raises `UsageError`, `ModelCorruptError`."""
    return known(name).fetch(models_dir)


def fetched(models_dir: Path) -> list[Model]:
    """Return the records of models on disk that have no name of their own: other opus-mt pairs, others of the hub."""
    records: list[Model] = []
    places = f"*/{COMPLETE}", f"hub/**/{COMPLETE}", f"files/**/{COMPLETE}"
    for file in sorted(file for place in places for file in models_dir.glob(place)):
        with suppress(OSError, ValueError, KeyError, TypeError, UsageError):  # no record of ours
            records.append(known(json.loads(file.read_text())["name"]))
    return [record for record in records if record.name not in REGISTRY]


def locate(weights: str, models_dir: Path) -> Path:
    """Return where a recipe's `weights` lie: a model's file or folder, or the local path itself.

    Raises `ModelMissingError`, `ModelCorruptError`.
    """
    try:
        return _locate(weights, models_dir)
    except (ModelMissingError, ModelCorruptError):
        raise
    except UsageError as error:  # no model has such a name
        raise ModelMissingError(str(error)) from None


def _locate(weights: str, models_dir: Path) -> Path:
    # A preset's name is never taken for a folder that happens to lie in the working folder.
    if weights not in REGISTRY and any(mark in weights for mark in "/\\."):
        path = expanded(weights)
        if path.exists():
            return path
        if not _HUB_ID.fullmatch(weights) and "://" not in weights:
            msg = f"no model at {weights}: correct the path, or name the hub's owner/name@revision"
            raise ModelMissingError(msg + _near(weights))
    return find(weights, models_dir)


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, REGISTRY, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def weights_revision(weights: str) -> str:
    """Return the revision of a recipe's `weights`; empty for a local path and an address, whose content is their owner's."""
    if weights in REGISTRY:
        return REGISTRY[weights].revision
    return weights.partition("@")[2]
