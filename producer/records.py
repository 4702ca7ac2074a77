"""An item's record, read back as captioning wrote it, and looked at before it is believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from shared.errors import JobDamagedError

if TYPE_CHECKING:
    from shared.storage import Storage


class _Stage(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # pydantic's own way to say so

    reasons: list[str]
    seconds: dict[str, float]
    measures: dict[str, Any]


class _Record(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # as above

    outcome: Required[Literal["done", "needs_review"]]
    reasons: list[str]
    captions: dict[str, str]
    details: dict[str, dict[str, Any]]
    outputs: dict[str, str]
    stages: dict[str, _Stage]


_RECORD = TypeAdapter(_Record)


def read_record(destination: Storage, key: str) -> dict[str, Any]:
    """Return an item's record. Raises `ObjectMissingError`, `StorageError`, and `JobDamagedError` for what was cut short or edited into another shape."""
    data = destination.get(key).data
    try:
        return dict(_RECORD.validate_json(data, strict=True))
    except ValidationError:
        raise JobDamagedError(f"{destination.url}/{key} is damaged: delete it, and run the job again") from None
