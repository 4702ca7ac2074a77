"""The interface every storage keeps, and the one place where an address becomes a storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Stat:
    """What the storage knows of an object without its bytes."""

    key: str
    """Relative to the storage's root (bucket and prefix, or folder); `/`-separated."""
    size: int
    """Bytes."""
    etag: str
    """Changes when the content does; without quotes."""
    modified: float = 0.0
    """Since when it is here as it is, in seconds since the epoch."""
    content_type: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """ASCII names and values, 2 KB together (S3's limit). Filled by `head` and `get`, never by `list`."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An object's bytes with what the storage knows of them."""

    data: bytes
    stat: Stat


class Storage(Protocol):
    """A place with keys, relative to `url`.

    Every method raises `StorageError` for faults that may pass, `StorageRefusedError` for what an operator must fix (its
    message names the address and the next step) and `KeyRefusedError` for a key that would leave the root.
    """

    url: str
    """Address without credentials, as `open_storage` takes it."""
    at_once: int
    """How many short requests at once it rewards: many where each waits for a network, one where threads would only wait for each other."""

    def list(self, prefix: str = "", *, after: str = "", ahead: bool = False) -> Iterator[Stat]:
        """Yield objects lazily in ascending UTF-8 key order, only keys greater than `after`.

        `ahead` reads several folders at once where each answer takes its time: for long listings.
        """
        ...

    def head(self, key: str) -> Stat | None:
        """Tell what is known of an object; None when there is none."""
        ...

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Read an object; `ObjectMissingError` when absent, `PictureTooLargeError` when over `limit` bytes (checked before reading)."""
        ...

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Write an object atomically; readers see all of it or none. With `if_absent`, return False when one was there and leave it."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when it is absent."""
        ...

    def check_writable(self) -> None:
        """Raise `StorageRefusedError`, saying what to do, when nothing can be written here."""
        ...


def open_storage(url: str, settings: Settings) -> Storage:
    """Open `s3://bucket/prefix`, `memory://name`, `synthetic://count` or a folder (a path or `file://` address).

    Raises `UsageError` for any other scheme. S3 is not contacted until first use.
    """
    # Imported here so that a folder job never pays for boto3, and the reverse.
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        from shared.storage.local import LocalStorage  # noqa: PLC0415 - see above

        return LocalStorage(rest if separator else url)
    if scheme == "s3":
        from shared.storage.s3 import S3Storage  # noqa: PLC0415 - see above

        return S3Storage.from_settings(url, settings)
    if scheme == "memory":
        from shared.storage.memory import MemoryStorage  # noqa: PLC0415 - see above

        return MemoryStorage.named(rest)
    if scheme == "synthetic":
        from shared.storage.synthetic import SyntheticStorage  # noqa: PLC0415 - see above

        return SyntheticStorage(rest)
    msg = f"cannot open {url!r}: use a folder or s3://bucket/prefix"
    raise UsageError(msg)
