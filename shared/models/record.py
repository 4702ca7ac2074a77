"""What is known of a model, wherever it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from shared.keys import StageName

COMPLETE = "vitrina.json"
"""In the folder of fetched weights, written last: an interrupted download never passes for a whole one. Holds what the first fetch found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(ABC):
    """One set of weights that a recipe can name."""

    name: str
    stage: StageName | None
    """None where only the recipe that names it can tell."""
    revision: str
    """What tells these weights from others under the same name."""
    licence: str
    commercial: bool | None
    """Whether the licence lets the weights be used commercially; None where it was not looked up."""
    size: int
    """Bytes to fetch; 0 where not known."""
    memory: int
    """Bytes that a worker needs beside its own libraries, on its device, at a batch of eight; 0 where not known."""
    starter: bool = False
    """Belongs to the set that `vitrina models fetch` brings without being told which."""
    also: tuple[str, ...] = ()
    """Names of further models that it does not work without."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the weights come from, for people."""

    @abstractmethod
    def find(self, models_dir: Path) -> Path:
        """Return the path of the checked file or folder. Raises `ModelMissingError`, `ModelCorruptError`."""

    @abstractmethod
    def fetch(self, models_dir: Path) -> Path:
        """Bring the weights to disk unless they are there, and return their path. Raises `UsageError`, `ModelCorruptError`."""
