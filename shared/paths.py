"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from shared.errors import UsageError


def expanded(text: str) -> Path:
    """Return a path whose `~` or `~user` is filled in. Raises `UsageError` for a user without a home, and for what can be no path."""
    if "\0" in text:
        raise UsageError(f"{text!r} holds a NUL character: correct the path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: no such user, or one without a home: write the path in full") from None
