"""Text of others on its way to a terminal, a log or a table: what could steer a terminal is written out instead."""

from __future__ import annotations

import json
import re

# C0 but for tab and line breaks, DEL, C1, halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    """Write out whatever cannot be seen, marks of direction included, but for the characters in `keep`; for lines that people read."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def without_controls(text: str) -> str:
    r"""Write out control characters but for tab and line breaks, as `\x1b`; for tables, whose other characters are data."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def to_json(value: object) -> str:
    """Write JSON on one line, with other scripts as they are and control characters escaped as JSON escapes them."""
    return _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(value, ensure_ascii=False))
