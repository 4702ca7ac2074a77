"""When a caption is doubted rather than trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def caption_reasons(captions: Mapping[str, str], *, certain: bool) -> tuple[str, ...]:
    """Return why a person should read the captions (text by language); empty when nothing is wrong.

    `caption_uncertain` when the model is not `certain` of what it saw, `caption_empty` when a text has no letter in it.
    """
    reasons = [] if certain else ["caption_uncertain"]
    if not all(any(char.isalpha() for char in text) for text in captions.values()):
        reasons.append("caption_empty")
    return tuple(reasons)
