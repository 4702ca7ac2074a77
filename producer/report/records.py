"""What the report is told: one summary, and one card per item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Outcome = Literal["failed", "needs_review", "done"]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures at the top of the report."""

    job: str
    source: str
    """Address without credentials."""
    destination: str
    """Address without credentials."""
    recipe_text: str
    """The recipe as the reader would write it (YAML or JSON)."""
    items: int
    done: int
    """Done without doubts; `items` is `done + needs_review + failed` once the job has ended."""
    needs_review: int
    failed: int
    skipped: int
    """Items, of those done, whose every file was already there."""
    seconds: float
    """Wall-clock time of the job."""
    images_per_second: float
    stage_seconds: Mapping[str, float]
    """Mean seconds of one item by stage name, in the order to show."""
    started: str
    """ISO 8601, with an offset."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Model and revision by stage name."""
    version: str = ""
    """Of vitrina."""


@dataclass(frozen=True, slots=True)
class Card:
    """One item. Every field past `outcome` may be empty: a failed item has what was made before it failed."""

    index: int
    """Place in the job's listing, from 0; unique within the report."""
    key: str
    outcome: Outcome
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What a manifest says of the item, JSON-able: `title` and `id` (the merchant's own number) are shown."""
    skipped: bool = False
    """Every file was already there when the job came to it."""
    reasons: tuple[str, ...] = ()
    """Stable words, as `VitrinaError.reason` and the gates give them."""
    evidence: Mapping[str, str] = field(default_factory=dict)
    """What was measured and its limit, in words, by reason."""
    detail: str = ""
    """The failure's message."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Caption by language code, in the order to show."""
    pictures: Mapping[str, bytes | Sequence[bytes]] = field(default_factory=dict)
    """Thumbnails (JPEG, PNG or WebP files, up to 288 px) by kind: `source`, `mask`, `cutout`, `image`; variants are a sequence."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Address of the full file by kind: http(s), `file:` or relative to the report. Others are shown as text. Variant n > 1 is `image-n`."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage name."""
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Anything else worth showing (size, seed …): text by label, by group."""
