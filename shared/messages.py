"""What crosses the queues: one small frozen record of keys and numbers, as JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared.errors import KeyRefusedError, MessageError
from shared.keys import check_source_key

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
_JOB = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_TYPES = {"version": int, "job": str, "index": int, "key": str, "etag": str}
MAX_INDEX = 2**32 - 1
"""Redis bitmaps end at 2^32 bits."""
MAX_ETAG = 256
"""Characters; storages give a few dozen."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo as a listing or a manifest names it."""

    key: str
    """Relative to the source."""
    etag: str
    """Empty when the source has no such photo, or was not asked yet."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """See `shared.fields`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One photo of one job: the whole argument of every task."""

    job: str
    index: int
    """Position in the job, from 0; the bit in the job's bitmaps."""
    key: str
    """Source key, relative to the job's source."""
    etag: str
    """The source's ETag when it was listed."""
    version: int = VERSION
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the manifest says of it; lies in the job's record and never crosses a queue."""

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return {name: getattr(self, name) for name in _TYPES}

    @classmethod
    def from_wire(cls, data: object) -> Item:
        """Check what came off the queue. Raises `MessageError` for unknown versions, unknown fields, wrong types and keys that are not safe."""
        if not isinstance(data, dict) or set(data) != set(_TYPES):
            raise MessageError(f"expected exactly the fields {', '.join(_TYPES)}")
        for name, kind in _TYPES.items():
            if type(data[name]) is not kind:
                raise MessageError(f"{name} must be of type {kind.__name__}")
        if data["version"] != VERSION:
            raise MessageError(
                f"message version {data['version']} is not {VERSION}: run workers and producer of one release"
            )
        if not _JOB.fullmatch(data["job"]):
            raise MessageError("job is not a job id")
        if not 0 <= data["index"] <= MAX_INDEX:
            raise MessageError(f"index must be between 0 and {MAX_INDEX}")
        if len(data["etag"]) > MAX_ETAG:
            raise MessageError("etag is too long")
        try:
            check_source_key(data["key"])  # the producer has sorted such keys out
        except KeyRefusedError as error:
            raise MessageError(str(error)) from None
        return cls(**data)
