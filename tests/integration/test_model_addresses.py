"""Weights that no preset names: a file at an https address, or one file of a repository."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest
from made_hub import COMMIT, Server, serving
from made_tls import Authority, tls_proxy
from typer.testing import CliRunner

from producer.cli import app
from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models import HubModel, fetched, find, known, locate
from shared.models.catalogue import REGISTRY, from_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUBLISHED = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth"


@pytest.fixture
def server() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the same over TLS, with a certificate that this process trusts."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with tls_proxy(int(server.rpartition(":")[2]), authority) as port:
        yield f"https://localhost:{port}/models/own.pth"


def test_an_address_is_weights_like_any_other(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing with the command that fetches it, fetched once by that command, then found, listed, and compared with its first digest."""
    models = tmp_path / "models"
    monkeypatch.setenv("VITRINA_MODELS_DIR", str(models))
    with pytest.raises(ModelMissingError, match=f"vitrina models fetch {address}"):
        locate(address, models)
    done = CliRunner().invoke(app, ["models", "fetch", address])
    assert done.exit_code == 0, done.output
    path = locate(address, models)
    assert path.read_bytes() == Server.weights
    assert path.name == "own.pth"
    assert [model.name for model in fetched(models)] == [address]
    assert CliRunner().invoke(app, ["models", "fetch", address]).exit_code == 0
    assert Server.ranges == [""]
    path.write_bytes(b"other")
    with pytest.raises(ModelCorruptError, match="SHA-256"):
        locate(address, models)
    assert known(address).fetch(models).read_bytes() == Server.weights


def test_an_address_that_gives_another_file_is_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first fetch found counts, unless its folder is deleted; half a file of then is no beginning of one of now."""
    model = from_address(f"{server}/own.pth")
    path = model.fetch(tmp_path)
    path.unlink()
    monkeypatch.setattr(Server, "weights", b"another" * 1000)
    with pytest.raises(ModelCorruptError, match=f"no longer gives the file .* delete {path.parent}"):
        model.fetch(tmp_path)
    assert not path.exists()
    shutil.rmtree(path.parent)
    Server.cut.append(100)
    with pytest.raises(UsageError, match="broke off"):
        model.fetch(tmp_path)
    monkeypatch.setattr(Server, "weights", b"a third" * 1000)
    Server.ranges.clear()
    assert model.fetch(tmp_path).read_bytes() == Server.weights
    assert Server.ranges == [""]


def test_a_mirror_of_a_published_file_must_give_that_file(server: str, tmp_path: Path) -> None:
    """The published name binds the content; the publisher's own address is the preset itself."""
    assert known(PUBLISHED) is REGISTRY["sam-vit-h"]
    with pytest.raises(ModelCorruptError, match="did not give the published file"):
        from_address(f"{server}/sam_vit_h_4b8939.pth").fetch(tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "http://models.example/own.pth",
        "https://user:password@models.example/own.pth",
        "https://models.example/own.pth?signature=secret",
        "https://models.example/a/../../own.pth",
        "https://models.example/own.zip",
        "https://models.example/",
        "s3://shop/own.pth",
    ],
)
def test_other_addresses_are_refused_in_one_line(tmp_path: Path, address: str) -> None:
    """Nothing unencrypted, no secrets, no archives, nothing outside the models' folder."""
    with pytest.raises(ModelMissingError, match="must be https, plain, and end in") as refused:
        locate(address, tmp_path)
    assert "\n" not in str(refused.value)


def test_one_file_of_a_repository_can_be_named(tmp_path: Path) -> None:
    """It has a folder of its own, is found as the file, and is told apart from the repository's other files by its name."""
    model = known("shop/sam@main:checkpoints/own.pth")
    assert isinstance(model, HubModel)
    assert (model.repo, model.revision, model.file) == ("shop/sam", "main", "checkpoints/own.pth")
    assert model.origin == model.name
    folder = tmp_path / "hub" / "shop--sam--main--checkpoints--own.pth"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "own.pth").write_bytes(b"own")
    record = {"name": model.name, "commit": COMMIT, "files": {"checkpoints/own.pth": 3}}
    (folder / "vitrina.json").write_text(json.dumps(record))
    assert find(model.name, tmp_path) == folder / "checkpoints" / "own.pth"
    assert model.commit(tmp_path) == COMMIT
    with pytest.raises(ModelMissingError):
        find("shop/sam@main", tmp_path)
    assert model._choose({"checkpoints/own.pth": 3, "model.safetensors": 9}) == {"checkpoints/own.pth": 3}
    with pytest.raises(UsageError, match=r"shop/sam@main holds no checkpoints/own\.pth"):
        model._choose({"model.safetensors": 9})


def test_what_was_first_found_is_recorded_beside_the_file(server: str, tmp_path: Path) -> None:
    """So that every later start can compare it."""
    path = from_address(f"{server}/own.pth").fetch(tmp_path)
    record = json.loads((path.parent / "vitrina.json").read_text())
    assert record["sha256"] == hashlib.sha256(Server.weights).hexdigest()
