"""What a stage is: a class with four verbs. Everything else (fetching, batching, retries, progress) lives around it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from shared.provenance import Provenance
from shared.recipe import Recipe

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage is given for one item: bytes, read by the worker from storage."""

    key: str
    recipe: Recipe
    source: bytes
    """The photo's file."""
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    """Files of earlier stages and supplied files, by kind: `mask`, `cutout`, `image`, `supplied_mask`, `background`."""
    seed: int = 0
    """Same item, same seed."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says of the item: any of `title`, `category`, `prompt`, `points`, `box`, `seed`; see `shared.fields`."""
    upstream: Mapping[str, Provenance] = field(default_factory=dict)
    """Provenance of the earlier stages by stage name."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file to save."""

    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage made of one item."""

    artifacts: Mapping[str, Artifact]
    """By kind (`mask`, `cutout`, `image`, `caption`)."""
    reasons: tuple[str, ...] = ()
    """Why a person should look at it; empty when the gates passed. Stable words such as `mask_border`."""
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and words worth recording (area, stability, label, confidence …); JSON-able, small (under 1 KB)."""


class Model(Protocol[Input, Output]):
    """One model choice of one stage, named in the recipe by `name`.

    `prepare` and `finish` run in many task threads at once; `load` and `infer` in one thread. They raise `ItemError` for what
    is wrong with the item, `OutOfMemoryError` (or MemoryError, torch's own) when a batch does not fit.
    """

    name: str

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Name the files that `Work` must hold: `source` and kinds of `Work.inputs`. Nothing else is fetched."""
        ...

    def load(self, device: str, threads: int) -> None:
        """Read the weights to `device` and warm up. `threads` is the number of CPU threads the model may use. Raises `ModelMissingError`, `ModelCorruptError`."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Largest batch that makes this model faster, known once loaded; None leaves it to the settings, or to `USUAL_BATCH`."""
        ...

    def prepare(self, work: Work) -> Input:
        """Turn files into the model's input."""
        ...

    def bucket(self, item: Input) -> Hashable:
        """Return the bucket; inputs with equal buckets may share a batch."""
        ...

    def infer(self, batch: Sequence[Input]) -> Sequence[Output]:
        """Run the model on inputs of one bucket; one output per input, in order."""
        ...

    def finish(self, work: Work, item: Input, output: Output) -> Result:
        """Turn the model's output into files, gates and measures."""
        ...
