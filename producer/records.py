"""An item's record, read back as captioning wrote it, and looked at before it is believed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from shared.errors import JobDamagedError

if TYPE_CHECKING:
    from shared.storage import Storage


class _Stage(BaseModel):
    reasons: list[str] = []
    seconds: dict[str, float] = {}
    measures: dict[str, Any] = {}


class _Record(BaseModel):
    outcome: Literal["done", "needs_review"]
    reasons: list[str] = []
    captions: dict[str, str] = {}
    details: dict[str, dict[str, Any]] = {}
    outputs: dict[str, str] = {}
    stages: dict[str, _Stage] = {}


def read_record(destination: Storage, key: str) -> dict[str, Any]:
    """Return an item's record. Raises `ObjectMissingError`, `StorageError`, and `JobDamagedError` for what was cut short or edited into another shape."""
    data = destination.get(key).data
    try:
        record: dict[str, Any] = json.loads(data)
        _Record.model_validate(record, strict=True)
    except (ValidationError, ValueError, RecursionError):
        raise JobDamagedError(f"{destination.url}/{key} is damaged: delete it, and run the job again") from None
    return record
