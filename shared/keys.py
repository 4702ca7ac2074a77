"""Source keys that are safe to use, and the names of everything a job writes."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Literal

from shared.errors import KeyRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

StageName = Literal["segmentation", "inpainting", "captioning"]
STAGES: tuple[StageName, ...] = ("segmentation", "inpainting", "captioning")
"""In the order of the chain; also the names of the queues."""


def queue_name(stage: StageName, *, priority: bool = False) -> str:
    """Name a stage's queue: the stage itself, or the one that workers empty first."""
    return f"{stage}.priority" if priority else stage


QUEUES: tuple[str, ...] = tuple(queue_name(stage, priority=first) for stage in STAGES for first in (True, False))
"""Every queue, in the order of the chain; a stage's worker empties the first of its two before it looks at the second."""

# S3's own limit on a key, in UTF-8 bytes, less the 64 that an output's name adds.
MAX_KEY_BYTES = 1024 - 64


def check_source_key(key: str) -> str:
    """Return `key` when it is safe to use as a folder of outputs; raise `KeyRefusedError` otherwise.

    Refused: empty, absolute, with `.` or `..` or an empty segment, a backslash, control characters or text that is not Unicode, and over
    `MAX_KEY_BYTES` bytes.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise KeyRefusedError("the key is not valid Unicode: rename the file") from None
    if not key or size > MAX_KEY_BYTES:
        msg = f"the key has {size} bytes: rename it to between 1 and {MAX_KEY_BYTES}"
        raise KeyRefusedError(msg)
    # What is printable, as nearly every key is, holds none of these.
    if not key.isprintable() and any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in key):
        raise KeyRefusedError("the key holds a control character or a line break: rename the file")
    if "\\" in key:
        raise KeyRefusedError("the key holds a backslash, which is a folder mark on some systems: rename it")
    if any(segment in {"", ".", ".."} for segment in key.split("/")):
        raise KeyRefusedError("the key is absolute, or has an empty, '.' or '..' segment: rename it")
    return key


def output_key(source_key: str, kind: str, fingerprint: str, extension: str) -> str:
    """Name one output, for example `shoes/1.jpg/mask-0a1b….png`: the whole source key, extension included, is the folder."""
    return f"{source_key}/{kind}-{fingerprint}.{extension}"


def own_outputs(source_key: str, outputs: Mapping[str, str]) -> dict[str, str]:
    """Return those of a record's outputs that lie in the folder of their source: whoever edits a record names no other file."""
    return {kind: key for kind, key in outputs.items() if key.rpartition("/")[0] == source_key and _safe(key)}


def _safe(key: str) -> bool:
    return {"", ".", ".."}.isdisjoint(key.split("/"))


def mask_key(source_key: str, pattern: str) -> str:
    """Name the mask that lies beside a photo: `{key}` and `{stem}` (the key without its extension) of the pattern are filled in."""
    folder, _, name = source_key.rpartition("/")
    stem = (folder + "/" if folder else "") + (name.rpartition(".")[0] or name)
    return pattern.replace("{key}", source_key).replace("{stem}", stem)


def job_prefix(job: str) -> str:
    """Name the folder of a job's own records in the output storage."""
    return f"jobs/{job}/"
