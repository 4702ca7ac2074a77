"""Prompts: a template of the recipe, filled per item."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.recipe import DiffusionBackground

_FIELD = re.compile(r"\{(category|title|color)\}")
_EMPTY_PART = re.compile(r"(?:^|(?<=[\s,]))(?:of|for|with|in|on|a|an|the)\s*(?=,|$)")


def prompt_for(section: DiffusionBackground, fields: Mapping[str, Any]) -> str:
    """Return an item's prompt: its own, or the recipe's with `{category}`, `{title}` and `{color}` filled in.

    What an item lacks leaves no double space, stray comma or dangling preposition. Other braces are text.
    """
    if fields.get("prompt"):
        return str(fields["prompt"])
    values = {"category": fields.get("category"), "title": fields.get("title"), "color": section.color}
    text = _FIELD.sub(lambda match: str(values[match[1]] or ""), section.prompt)
    return tidy(text)


def tidy(text: str) -> str:
    """Close the gaps that missing fields left: `a photo of , grey` becomes `a photo, grey`."""
    text = re.sub(r"\s+", " ", text)
    parts = []
    for part in text.split(","):
        kept = _EMPTY_PART.sub("", part.strip()).strip()
        if kept:
            parts.append(kept)
    return ", ".join(parts)
