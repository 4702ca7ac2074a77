"""Checkpoints at an address, such as Segment Anything's."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models.record import COMPLETE, Model
from shared.models.wheels import checked, digest

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 20
_WAIT_SECONDS = 60
# Without a byte: a slow line is no fault, a dead one is.


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointModel(Model):
    """One file at an https address."""

    url: str
    sha256: str | None
    """The published digest; None where none is known: then the first fetch records the one it finds, and whatever comes later must have it."""
    folder: str = ""
    """Inside the models' folder; the model's name where empty."""

    @property
    def origin(self) -> str:
        """Give the address."""
        return self.url

    @property
    def file(self) -> str:
        """Return the file's name."""
        return self.url.rpartition("/")[2]

    def find(self, models_dir: Path) -> Path:
        """Return the file's path once its digest is right."""
        path = self._path(models_dir)
        sha256 = self.sha256 or self._recorded(path)
        if sha256 is None:
            raise ModelMissingError(f"model {self.name} is missing ({path}): run `vitrina models fetch {self.name}`")
        return checked(self.name, path, sha256)

    def fetch(self, models_dir: Path) -> Path:
        """Download the file; one whose digest is published goes on where an earlier download stopped."""
        try:
            return self.find(models_dir)
        except (ModelMissingError, ModelCorruptError):
            pass
        path = self._path(models_dir)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.sha256 is None:  # nothing could tell that the file has changed between the two
                part.unlink(missing_ok=True)
            self._download(part)
            self._accept(part, path)
        except urllib.error.URLError as error:
            msg = f"cannot download {self.url}: {error.reason}: check the network, then fetch again"
            raise UsageError(msg) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UsageError(f"cannot bring {self.url} to {part}: {reason}: see to it, then fetch again") from None
        return path

    def _accept(self, part: Path, path: Path) -> None:
        """Put a download in its place if it is what was published, or what the first fetch found."""
        status = part.stat()
        found, recorded = digest(part, status.st_size, status.st_mtime_ns), self._recorded(path)
        if found != (self.sha256 or recorded or found):
            part.unlink()
            if self.sha256:
                raise ModelCorruptError(f"{self.url} did not give the published file (wrong SHA-256): fetch again")
            msg = (
                f"{self.url} no longer gives the file that was fetched first: to take the new one, delete {path.parent}"
            )
            raise ModelCorruptError(msg)
        part.replace(path)
        if recorded is None:
            temporary = path.with_name(f".{COMPLETE}")
            temporary.write_text(json.dumps({"name": self.name, "sha256": found}, indent=1))
            temporary.replace(path.with_name(COMPLETE))

    def _recorded(self, path: Path) -> str | None:
        """Return the digest that the first fetch found, where there was one."""
        try:
            return str(json.loads(path.with_name(COMPLETE).read_text())["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _path(self, models_dir: Path) -> Path:
        return models_dir / (self.folder or self.name) / self.file

    def _download(self, part: Path) -> None:
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - http(s), as `from_address` sees to
        try:
            answer = urllib.request.urlopen(request, timeout=_WAIT_SECONDS)  # noqa: S310 - as above
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and have:  # noqa: PLR2004 - nothing beyond what is there: the digest decides
                return
            raise
        with answer, part.open("ab" if answer.status == 206 else "wb") as file:  # noqa: PLR2004 - the server goes on where we stopped
            need, room = answer.length or 0, shutil.disk_usage(part.parent).free
            if need > room:
                msg = f"{self.url} needs {need / 1e9:.1f} GB more and {part.parent} has {room / 1e9:.1f}: set VITRINA_MODELS_DIR"
                raise UsageError(msg)
            shutil.copyfileobj(answer, file, _CHUNK)
            if answer.length:  # what was announced and did not come; the library takes it for the end
                msg = f"{self.url} broke off {answer.length / 1e6:.0f} MB before its end: fetch again, it goes on from there"
                raise UsageError(msg)
