"""A local folder as storage: atomic writes, metadata in a hidden file beside each object."""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import (
    KeyRefusedError,
    ObjectMissingError,
    PictureTooLargeError,
    StorageError,
    StorageRefusedError,
)
from shared.paths import expanded
from shared.storage.base import Blob, Stat
from shared.temporary import sorted_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_MAX_SIDECAR = 65_536
# Bytes; ours have at most two thousand, and a folder of photos may hold anything under that name.
_FOLDER, _LEAVES = b"/", b"\0"
# Marks after a name, which holds neither. A folder sorts as its name with a slash: '.' comes before '/', so plain names would be out of
# order. A link that leaves the root sorts as the file that it is named like: nothing comes before the other.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENXIO,
}
_NOT_SYNCED = {errno.EINVAL, errno.ENOTSUP}
# File systems whose folders cannot be written through.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
# Nothing can be where a folder is missing, where a file takes a folder's place, or under a name the disk cannot hold.


class LocalStorage:
    """A folder; keys are paths below it. Only regular files are objects, and none whose name or folder begins with a dot.

    The ETag comes from size and time of change (nanoseconds), so that listing reads no file.
    """

    at_once = 1

    def __init__(self, root: str) -> None:
        self._root = expanded(root).absolute()
        self.url = str(self._root)

    def _path(self, key: str) -> str:
        # No `Path`: it keeps every part of every name in a table of the interpreter's, which millions of keys make anew again and again.
        parts = key.split("/")
        if any(part in {"", ".", ".."} or part.startswith(".") for part in parts) or "\0" in key:
            raise KeyRefusedError(f"{key!r} cannot be a path below {self.url}")
        below = list(itertools.accumulate([self.url, *parts], os.path.join))
        # The file itself too: a photo of the listing may be a link.
        if any(map(os.path.islink, below[1:])) and self._leaves(below[-1]):
            raise KeyRefusedError(
                f"{key!r} leaves {self.url} through a link: put a copy of what it leads to in its place"
            )
        return below[-1]

    def list(self, prefix: str = "", *, after: str = "", ahead: bool = False) -> Iterator[Stat]:
        """Yield in ascending UTF-8 key order, one folder at a time, whose names go to a temporary file when they are many.

        A link that leaves the root is yielded as well, and refused when it is read: it would vanish without a word.
        """
        del ahead
        if not self._root.is_dir():
            raise StorageRefusedError(f"no such folder: {self.url}: create it or correct the path")
        yield from self._walk(self._root, "", prefix, os.fsencode(after))

    def _walk(self, folder: Path, base: str, prefix: str, after: bytes) -> Iterator[Stat]:
        try:
            names = self._names(folder)
        except ObjectMissingError:
            if self._root.is_dir():
                return  # this one was removed meanwhile
            raise
        for order in names:
            name = os.fsdecode(order.rstrip(_FOLDER + _LEAVES))
            key = base + name
            if order.endswith(_FOLDER):
                inner = key + "/"
                last = os.fsencode(inner) + b"\xff"
                if (inner.startswith(prefix) or prefix.startswith(inner)) and last > after:
                    yield from self._walk(folder / name, inner, prefix, after)
            elif key.startswith(prefix) and os.fsencode(key) > after:
                try:
                    with self._errors(key):
                        status = (folder / name).stat(follow_symlinks=not order.endswith(_LEAVES))
                except ObjectMissingError:
                    continue  # removed meanwhile
                yield Stat(key, status.st_size, _etag(status), _modified(status))

    def _names(self, folder: Path) -> Iterable[bytes]:
        """Return the names of what lies in a folder, in the order of keys, each with the mark of what it is."""
        with self._errors(str(folder)), os.scandir(folder) as entries:
            return sorted_names(
                os.fsencode(e.name) + (_FOLDER if e.is_dir(follow_symlinks=False) else _LEAVES if leaves else b"")
                for e in entries
                if not e.name.startswith(".")
                and (
                    (leaves := e.is_symlink() and self._leaves(e.path))
                    # A folder within the root is listed where it lies, not where links to it do.
                    or (Path(e.path).is_file() if e.is_symlink() else e.is_file() or e.is_dir())
                )
            )

    def _leaves(self, link: str) -> bool:
        root, target = os.path.realpath(self._root), os.path.realpath(link)
        return target != root and not target.startswith(root.rstrip(os.sep) + os.sep)

    def head(self, key: str) -> Stat | None:
        """Tell what is known of an object."""
        path = self._path(key)
        with self._errors(key):
            try:
                status = os.stat(path)  # noqa: PTH116 - as in `_path`
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise
        return self._stat(key, path, status) if stat.S_ISREG(status.st_mode) else None

    def _stat(self, key: str, path: str, status: os.stat_result) -> Stat:
        try:
            with open(_sidecar(path), "rb", opener=_open_at_once) as file:
                extra = json.loads(file.read(_MAX_SIDECAR))
            content_type, metadata = str(extra["content_type"]), dict(extra["metadata"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):  # none, or not one of ours
            content_type, metadata = "", {}
        return Stat(key, status.st_size, _etag(status), _modified(status), content_type, metadata)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Read an object."""
        path = self._path(key)
        with self._errors(key), open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ObjectMissingError(f"{key} in {self.url} is no regular file")
            if limit is not None and status.st_size > limit:
                msg = f"{status.st_size} bytes are more than {limit}: raise VITRINA_MAX_BYTES or shrink the file"
                raise PictureTooLargeError(msg)
            return Blob(file.read(), self._stat(key, path, status))

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Write an object: the sidecar first, so that an object that is there has its metadata. It survives a power cut."""
        path = Path(self._path(key))
        sidecar = json.dumps({"content_type": content_type, "metadata": dict(metadata or {})}).encode()
        with self._errors(key):
            if if_absent and path.exists():
                return False
            while True:
                changed = _make_folder(path.parent)
                # Who deletes the last object of a folder removes the folder, perhaps at this very moment.
                with suppress(FileNotFoundError):
                    if metadata:
                        _write(Path(_sidecar(str(path))), sidecar, exclusive=False)
                    written = _write(path, data, exclusive=if_absent)
                    for folder in changed:
                        _sync(folder)
                    return written

    def delete(self, key: str) -> None:
        """Remove an object and its sidecar, and the folders that this leaves empty."""
        path = Path(self._path(key))
        with self._errors(key):
            path.unlink(missing_ok=True)
            Path(_sidecar(str(path))).unlink(missing_ok=True)
        with suppress(OSError):  # the first that is not empty ends it
            for folder in path.parents:
                if folder == self._root:
                    break
                folder.rmdir()

    def check_writable(self) -> None:
        """Write and remove a hidden file."""
        with self._errors(self.url):
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                probe = self._root / f".vitrina-probe-{secrets.token_hex(4)}"
                probe.write_bytes(b"")
                probe.unlink()
            except FileNotFoundError:  # as in /proc
                raise StorageRefusedError(f"nothing can be made at {self.url}: choose another folder") from None

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ObjectMissingError(f"no file {what} in {self.url}") from None
        except OSError as error:
            if error.errno in _FULL:
                raise StorageError(f"the disk of {self.url} is full: make room") from None
            if error.errno in _REFUSED:
                msg = f"cannot use {what} in {self.url}: {error.strerror}: check the path and its permissions"
                raise StorageRefusedError(msg) from None
            raise StorageError(f"{what} in {self.url}: {error}") from None


def _open_at_once(path: str, flags: int) -> int:
    # A pipe would otherwise hold its reader until somebody writes.
    return os.open(path, flags | os.O_NONBLOCK)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


def _modified(status: os.stat_result) -> float:
    # What is moved here keeps its own time: like an S3 server we tell since when it is here as it is.
    return max(status.st_mtime, status.st_ctime)


def _sidecar(path: str) -> str:
    folder, name = os.path.split(path)
    return f"{folder}/.{name}.meta"


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder where it is missing; return those that a new file in it changes, the innermost first."""
    missing = list(itertools.takewhile(lambda here: not here.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return [folder, *(made.parent for made in missing)]


def _sync(folder: Path) -> None:
    # A name is on the disk when its folder is. Nothing in memory, and about a millisecond on a disk.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):  # removed meanwhile, or one that we may only write to
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes, *, exclusive: bool) -> bool:
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            temporary.replace(path)
            return True
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True
    finally:
        temporary.unlink(missing_ok=True)
