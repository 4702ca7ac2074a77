"""Instant models: every stage without weights, for tests and for measuring everything around the models.

`celery -A workers.testing worker …` runs them. What they do with a photo is told by its bytes, so that faults can be injected from outside:
`slow:<seconds>` takes that long, `doubt:<stage>` needs review there, `bad` is an unreadable picture, `bug:<text>` raises, `memory` finds none left, `outage` finds the storage away,
`die` ends the process, `hang` never ends, `gil:<seconds>` holds the interpreter's lock, `eat` takes all memory there is; anything else passes.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from shared.errors import StorageError, UnreadablePictureError
from shared.settings import Settings
from workers.boot import boot
from workers.stage import Artifact, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shared.keys import StageName
    from shared.recipe import ModelSection, Recipe
    from workers.stage import Work

_READS = {"segmentation": ("source",), "inpainting": ("mask",), "captioning": ("image",)}
_WRITES = {"segmentation": ("cutout", "mask"), "inpainting": ("image",), "captioning": ("caption",)}


class InstantModel:
    """Satisfies `workers.stage.Model` for any stage; its outputs are the source's bytes."""

    def __init__(self, stage: StageName, name: str) -> None:
        self.name = name
        self._stage = stage

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read what the real stage reads."""
        del recipe
        return _READS[self._stage]

    @property
    def max_batch(self) -> None:
        """Leave it to the settings."""

    def load(self, device: str, threads: int) -> None:
        """Load nothing."""

    def prepare(self, work: Work) -> bytes:
        """Do as the photo says."""
        if self._stage == "segmentation":
            obey(work.source)
        return work.source or next(iter(work.inputs.values()))

    def bucket(self, item: bytes) -> int:
        """Share one bucket."""
        del item
        return 0

    def infer(self, batch: Sequence[bytes]) -> Sequence[bytes]:
        """Return the inputs."""
        return batch

    def finish(self, work: Work, item: bytes, output: bytes) -> Result:
        """Write the bytes as every kind of output of the stage."""
        del item
        caption = json.dumps({"captions": {"en": work.key, "ru": work.key}}).encode()
        return Result(
            {
                kind: Artifact(caption if kind == "caption" else output, "application/octet-stream")
                for kind in _WRITES[self._stage]
            },
            reasons=("asked_for",) if output == f"doubt:{self._stage}".encode() else (),
        )


def _eat(_: str) -> None:
    eaten = []
    while True:
        eaten.append(bytes(100_000_000))


def _raise(error: type[Exception], text: str = "the photo asks for it") -> Callable[[str], NoReturn]:
    def order(value: str) -> NoReturn:
        raise error(value or text)

    return order


_ORDERS: dict[str, Callable[[str], object]] = {
    "slow": lambda value: time.sleep(float(value)),
    "bad": _raise(UnreadablePictureError),
    "bug": _raise(ZeroDivisionError),
    "memory": _raise(MemoryError),
    "outage": _raise(StorageError),
    "die": lambda _: os._exit(9),
    "hang": lambda _: threading.Event().wait(),
    "gil": lambda value: ctypes.PyDLL(None).usleep(int(1e6 * float(value))),  # called without giving the lock up
    "eat": _eat,
}


def obey(photo: bytes) -> None:
    """Do what the bytes of a photo ask for."""
    word, _, value = photo.decode("utf-8", "replace").partition(":")
    if word in _ORDERS:
        _ORDERS[word](value)


def make_instant(stage: StageName, section: ModelSection, settings: Settings) -> InstantModel:
    """Build an instant model under any name."""
    del settings
    return InstantModel(stage, section.model)


app = boot(Settings(), make_instant)
