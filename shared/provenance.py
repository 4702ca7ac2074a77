"""Where an output came from, small enough to travel as object metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELD = "vitrina"
"""The one metadata entry we write; S3 allows 2 KB of ASCII over all entries."""
MAX_BYTES = 1900


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made one stage's output, and how well it went."""

    job: str = ""
    stage: str = ""
    model: str = ""
    revision: str = ""
    reasons: tuple[str, ...] = ()
    """Why a person should look, this stage's and those before."""
    seed: int = 0
    measures: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By phase."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value not in ("", (), {})}

    def to_metadata(self) -> dict[str, str]:
        """Return object metadata. Measures are left out when they would not fit."""
        record = self.to_dict()
        text = json.dumps(record, separators=(",", ":"))
        if len(text) > MAX_BYTES:
            record.pop("measures", None)
            text = json.dumps(record, separators=(",", ":"))
        return {FIELD: text}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Provenance:
        """Read object metadata; an output that carries none (copied by other tools) is of unknown origin, not an error."""
        try:
            record = json.loads(metadata.get(FIELD, "{}"))
            return cls(**{**record, "reasons": tuple(record.get("reasons", ()))})
        except (ValueError, TypeError):
            return cls()
