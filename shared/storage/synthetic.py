"""A source of any size that takes no room: public, for measuring what a hundred million photos cost before there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import ObjectMissingError, StorageRefusedError, UsageError
from shared.storage.base import Blob, Stat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PHOTO = b"a photo that instant models take for one"
_DIGITS = 10


class SyntheticStorage:
    """`synthetic://1000` holds `0000000/0000000000.jpg` to `0000000/0000000999.jpg`, a thousand to a folder; nothing can be written to it."""

    at_once = 1

    def __init__(self, count: str) -> None:
        if not count.isdigit() or len(count) > _DIGITS:
            raise UsageError(f"synthetic://{count}: give the number of photos, for example synthetic://1000")
        self.url = f"synthetic://{count}"
        self._count = int(count)

    def list(self, prefix: str = "", *, after: str = "", ahead: bool = False) -> Iterator[Stat]:
        """Yield in ascending key order."""
        del ahead
        first = _number(after) + 1 if after else 0
        for number in range(first, self._count):
            key = _key(number)
            if key.startswith(prefix):
                yield Stat(key, len(PHOTO), "synthetic")

    def head(self, key: str) -> Stat | None:
        """Tell what is known of a photo."""
        number = _number(key)
        return Stat(key, len(PHOTO), "synthetic") if 0 <= number < self._count else None

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Read a photo; all are the same few bytes."""
        del limit
        stat = self.head(key)
        if stat is None:
            raise ObjectMissingError(f"no object {key} in {self.url}")
        return Blob(PHOTO, stat)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Refuse."""
        del data, content_type, metadata, if_absent
        raise StorageRefusedError(f"{self.url} holds no outputs (asked to write {key}): give another destination")

    def delete(self, key: str) -> None:
        """Refuse."""
        raise StorageRefusedError(f"{self.url} cannot be changed (asked to remove {key})")

    def check_writable(self) -> None:
        """Refuse."""
        raise StorageRefusedError(f"{self.url} holds no outputs: give another destination")


def _key(number: int) -> str:
    return f"{number // 1000:07d}/{number:0{_DIGITS}d}.jpg"


def _number(key: str) -> int:
    """Return the number of a key of ours; -1 for any other."""
    digits = key.rpartition("/")[2].removesuffix(".jpg")
    return int(digits) if digits.isdigit() and _key(int(digits)) == key else -1
