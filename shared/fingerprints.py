"""Fingerprints: the same inputs, settings and models give the same names, and anything else gives other names."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LENGTH = 16
"""Hex digits: 64 bits, so that even 100 M outputs in one folder would clash with a chance of 3 in 10,000; here each folder holds a few."""


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hash JSON-able `parts` to `LENGTH` hex digits, whatever the order of the keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
