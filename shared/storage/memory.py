"""Storage in this process's memory: public, for tests and for measuring everything but storage."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, ClassVar

from shared.errors import ObjectMissingError, PictureTooLargeError
from shared.storage.base import Blob, Stat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class MemoryStorage:
    """A dictionary behind the storage interface. Thread-safe."""

    at_once = 1
    _named: ClassVar[dict[str, MemoryStorage]] = {}

    def __init__(self, name: str = "") -> None:
        self.url = f"memory://{name}"
        self._objects: dict[str, Blob] = {}
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryStorage:
        """Return the process's storage of that name."""
        return cls._named.setdefault(name, cls(name))

    def list(self, prefix: str = "", *, after: str = "", ahead: bool = False) -> Iterator[Stat]:
        """Yield in ascending UTF-8 key order."""
        del ahead
        with self._lock:
            keys = sorted((key for key in self._objects if key.startswith(prefix)), key=_order)
        for key in keys:
            blob = self._objects.get(key)
            if blob is not None and _order(key) > _order(after):
                yield Stat(key, blob.stat.size, blob.stat.etag, blob.stat.modified)

    def head(self, key: str) -> Stat | None:
        """Tell what is known of an object."""
        blob = self._objects.get(key)
        return blob.stat if blob else None

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Read an object."""
        blob = self._objects.get(key)
        if blob is None:
            raise ObjectMissingError(f"no object {key} in {self.url}")
        if limit is not None and blob.stat.size > limit:
            raise PictureTooLargeError(f"{blob.stat.size} bytes are more than {limit}: raise VITRINA_MAX_BYTES")
        return blob

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Write an object."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        blob = Blob(data, Stat(key, len(data), etag, time.time(), content_type, dict(metadata or {})))
        with self._lock:
            if if_absent and key in self._objects:
                return False
            self._objects[key] = blob
            return True

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._lock:
            self._objects.pop(key, None)

    def check_writable(self) -> None:
        """Memory is always writable."""


def _order(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
