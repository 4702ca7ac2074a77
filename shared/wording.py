"""Says what is wrong with a value, in the user's words rather than the checker's."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PATTERNS: Mapping[str, str] = {
    r"^#[0-9a-fA-F]{6}$": 'a colour such as "#ffffff"',
    r"^[^\s@]+(@[^\s@]+)?$": "a name of `vitrina models list`, owner/name@revision, or a path without spaces",
    r"^[a-z]{2,3}$": "a language's code of two or three small letters, such as en",
}
"""What a text of each pattern is, in words."""

_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number that is not infinite",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping of fields",
}
SHOWN = 60
"""Characters of a wrong value in the message: one terminal line."""


def causes(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out what only follows from another error: of a list with a wrong entry the checker says that it is too short as well."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(other["loc"][: len(error["loc"])] == error["loc"] for other in errors if other is not error)
    ]


def sentence(path: str, error: Mapping[str, Any]) -> str:
    """Say of the field at `path` (empty for the whole) what is wrong with it."""
    if error["type"] == "value_error":  # a check of our own, whose words name the fields
        return f"{path}: {fault(error)}" if path else fault(error)
    return f"{path} {fault(error)}".strip()


def place(location: Iterable[int | str]) -> str:
    """Write where a value stands; entries of a list are counted as people do: `points[1][3]`."""
    return "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def fault(error: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors asks for and what was given, without the name of the field."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    if kind == "literal_error":
        return one_of(given, re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]])
    return f"must be {_wanted(kind, context, str(error['msg']))}, not {shown(given)}{_hint(kind, given)}"


def one_of(given: Any, allowed: Iterable[str]) -> str:
    """Say which names are allowed, the nearest one first."""
    allowed = list(allowed)
    choices = allowed[0] if len(allowed) == 1 else f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    return f"must be {choices}, not {shown(given)}{nearest(given, allowed)}"


def nearest(given: Any, allowed: Iterable[str]) -> str:
    """Return ` (did you mean …?)` when a name was misspelt, else nothing."""
    near = difflib.get_close_matches(str(given), list(allowed), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: Any) -> str:
    """Write a wrong value on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _wanted(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _BOUNDS:
        return (
            _BOUNDS[kind]
            .format(**context)
            .replace(" 1 entries", " one entry")
            .replace(" 1 characters", " one character")
        )
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"a text that fits {context['pattern']}")
    known = _KINDS.get(kind.partition("_")[0])
    return known or message[:1].lower() + message[1:]


def _hint(kind: str, given: Any) -> str:
    if kind == "string_type" and given is not None:
        return ": put it in quotes"
    if kind == "string_type":
        return ": a colour such as #ffffff needs quotes in YAML"
    return ""
