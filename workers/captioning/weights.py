"""Reading models in the hub's layout: whole, or refused in one line."""

from __future__ import annotations

from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from shared.errors import ModelCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_DAMAGED = (
    *(OSError, ValueError, LookupError, TypeError, AssertionError, EOFError, RuntimeError),
    *(UnpicklingError, SafetensorError),
)
# What transformers and the readers below it raise over files that are cut short, of another shape or of another model.


@contextmanager
def reading(folder: Path, kind: str, weights: str) -> Iterator[None]:
    """Tell damaged or foreign files in one line. Raises `ModelCorruptError`."""
    try:
        yield
    except torch.OutOfMemoryError:  # no fault of the files
        raise
    except _DAMAGED as error:
        if "trust_remote_code" in str(error):
            msg = f"{folder} needs code of its own, which is never run: choose another {kind}"
            raise ModelCorruptError(msg) from error
        first = str(error).partition("\n")[0]
        raise ModelCorruptError(f"{folder} is no {kind}: fetch {weights} again ({first})") from error


def check_whole(info: Mapping[str, Any], folder: Path, weights: str) -> None:
    """Make sure that every weight came from the files: random ones give fluent nonsense without any error. Raises `ModelCorruptError`."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelCorruptError(f"{folder} lacks weights ({', '.join(missing[:3])}): fetch {weights} again")
