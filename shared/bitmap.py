"""Bitmaps as Redis has them: the bits of each byte are numbered from the most significant one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def bit(bits: bytes, index: int) -> bool:
    """Look up one bit; what lies past the end is not set."""
    byte = index >> 3
    return byte < len(bits) and bool(bits[byte] & (0x80 >> (index & 7)))


def packed(flags: Sequence[bool]) -> bytes:
    """Return the bitmap of some flags, filled up with zeros to a whole byte."""
    length = (len(flags) + 7) >> 3
    digits = "".join("1" if flag else "0" for flag in flags).ljust(8 * length, "0")
    return int(digits, 2).to_bytes(length)


def places(bits: bytes, first: int, *, value: int) -> Iterator[int]:
    """Yield the places of the bits that are as `value`, counted from `first`."""
    # Nearly all bytes of a long job hold nothing that is looked for: only the others are looked into.
    empty = 0x00 if value else 0xFF
    for place, byte in enumerate(bits):
        if byte != empty:
            yield from (first + 8 * place + number for number in range(8) if (byte >> (7 - number)) & 1 == value)
