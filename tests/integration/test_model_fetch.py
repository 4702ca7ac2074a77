"""Fetching models over HTTP: a hub and a file server of our own on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_hub import COMMIT, Server, serving

from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models import HubModel, fetched
from shared.models.checkpoints import CheckpointModel

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[str]:
    with serving() as address:
        yield address


FETCH = (
    "import sys; from pathlib import Path; from shared.models import HubModel; from shared.errors import VitrinaError\n"
    "model = HubModel(name='toy', stage=None, revision=sys.argv[3], licence='MIT', commercial=True, size=1, memory=1,"
    " repo=sys.argv[2])\n"
    "try: print(model.fetch(Path(sys.argv[1])))\n"
    "except VitrinaError as error: sys.exit(f'{error.reason}: {error}')\n"
)


def fetch(
    folder: Path, endpoint: str, repo: str = "pipeline", revision: str = "main", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own: the hub's library reads the endpoint when it is imported."""
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", FETCH, str(folder), f"shop/{repo}", revision],
        env=os.environ | quiet | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def toy(revision: str = "main") -> HubModel:
    return HubModel(
        name="toy",
        stage=None,
        revision=revision,
        licence="MIT",
        commercial=True,
        size=1,
        memory=1,
        repo="shop/pipeline",
    )


@pytest.mark.parametrize(
    ("repo", "files"),
    [
        (
            "pipeline",
            ["model_index.json", "safety_checker/model.safetensors", "unet/config.json", "unet/model.fp16.safetensors"],
        ),
        (
            "network",
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "source.spm",
            ],
        ),
        ("old", ["config.json", "pytorch_model.bin"]),
        ("checkpoint", ["checkpoints/own.pth"]),
    ],
)
def test_what_a_worker_reads_is_fetched_and_nothing_else(
    tmp_path: Path, server: str, repo: str, files: list[str]
) -> None:
    """Every part of a pipeline in half precision where there is any, every shard of a network, no code; a second fetch asks for nothing."""
    done = fetch(tmp_path, server, repo)
    assert done.returncode == 0, done.stderr
    assert sorted(set(Server.asked)) == files
    assert toy().find(tmp_path) == tmp_path / "toy"
    assert toy().commit(tmp_path) == COMMIT
    Server.asked.clear()
    assert fetch(tmp_path, server, repo).returncode == 0
    assert Server.asked == []


def test_a_model_is_mended_from_the_commit_it_came_from(tmp_path: Path, server: str) -> None:
    """A branch may have moved since; only another branch is looked up anew."""
    assert fetch(tmp_path, server).returncode == 0
    assert Server.revisions[0] == "main"
    (tmp_path / "toy" / "model_index.json").unlink()
    Server.revisions.clear()
    assert fetch(tmp_path, server).returncode == 0
    assert set(Server.revisions) == {COMMIT}
    (tmp_path / "toy" / "model_index.json").unlink()
    Server.revisions.clear()
    assert fetch(tmp_path, server, revision="other").returncode == 0
    assert Server.revisions[0] == "other"


def test_a_repository_writes_nothing_outside_its_folder(tmp_path: Path, server: str) -> None:
    """Whatever its files are called."""
    (tmp_path / "outside.json").write_text("ours")
    done = fetch(tmp_path, server, "hostile")
    assert done.returncode == 0, done.stderr
    assert set(Server.asked) == {"model.safetensors"}
    assert (tmp_path / "outside.json").read_text() == "ours"


def test_an_id_that_the_hub_cannot_have_is_told_in_one_line(tmp_path: Path, server: str) -> None:
    done = fetch(tmp_path, server, "two--dashes")
    assert "the hub has no shop/two--dashes@main" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_part_of_a_hub_model_never_passes_for_the_whole(tmp_path: Path, server: str) -> None:
    """A file cut short or gone is missing; the next fetch brings it, and only it."""
    assert fetch(tmp_path, server).returncode == 0
    weights = tmp_path / "toy" / "unet" / "model.fp16.safetensors"
    for damage in (lambda: weights.write_bytes(b"ha"), weights.unlink):
        damage()
        with pytest.raises(ModelMissingError, match="vitrina models fetch toy"):
            toy().find(tmp_path)
        Server.asked.clear()
        assert fetch(tmp_path, server).returncode == 0
        assert Server.asked == ["unet/model.fp16.safetensors"]
        assert toy().find(tmp_path)
    record = tmp_path / "toy" / "vitrina.json"
    for text in ("[]", '{"files": 3}', '{"files": {}', ""):
        record.write_text(text)
        with pytest.raises(ModelMissingError):
            toy().find(tmp_path)


def test_a_damaged_file_of_the_right_size_is_refused(tmp_path: Path, server: str) -> None:
    """It is compared with the hub's SHA-256, and the next fetch brings it anew."""
    Server.damaged.add("unet/model.fp16.safetensors")
    done = fetch(tmp_path, server)
    assert "model_corrupt: unet/model.fp16.safetensors of shop/pipeline@main came damaged" in done.stderr
    with pytest.raises(ModelMissingError):
        toy().find(tmp_path)
    Server.damaged.clear()
    assert fetch(tmp_path, server).returncode == 0


def test_a_pinned_model_is_not_taken_from_another_commit(tmp_path: Path, server: str) -> None:
    """What an earlier release fetched does not pass for what this one names."""
    assert fetch(tmp_path, server).returncode == 0
    assert toy(COMMIT).find(tmp_path)
    with pytest.raises(ModelMissingError, match="another revision"):
        toy("d" * 40).find(tmp_path)


def test_what_was_fetched_without_a_name_of_its_own_is_known(tmp_path: Path) -> None:
    """So that the list hides nothing that takes room."""
    for name, folder in (
        ("opus-mt-en-de", "opus-mt-en-de"),
        ("a/b@v1", "hub/a--b--v1"),
        ("sdxl", "sdxl"),
        ("?", "other"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "vitrina.json").write_text(json.dumps({"name": name}))
    (tmp_path / "other" / "vitrina.json").write_text("[")
    assert [model.name for model in fetched(tmp_path)] == ["a/b@v1", "opus-mt-en-de"]


@pytest.mark.parametrize(
    ("repo", "environment", "said"),
    [
        ("gone", {}, "the hub has no shop/gone@main"),
        ("pipeline", {"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        ("pipeline", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot bring shop/pipeline@main"),
        ("unsafe", {}, "shop/unsafe@main holds vae only in PyTorch's own format"),
        ("empty", {}, "shop/empty@main holds no weights"),
        ("checkpoints", {}, "several checkpoints (one.pth, two.pth): name one, shop/checkpoints@main:one.pth"),
        ("sam", {}, "Segment Anything in transformers' layout: take sam-vit-h"),
    ],
)
def test_what_keeps_a_model_away_is_one_clear_line(
    tmp_path: Path, server: str, repo: str, environment: dict[str, str], said: str
) -> None:
    """No such repository, offline, no network, no safe weights."""
    done = fetch(tmp_path, server, repo, **environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "toy" / "vitrina.json").exists()


def test_what_is_there_counts_for_the_room_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room for the rest is enough to go on; one without is told before anything is fetched."""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 600)
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    toy()._check_room(tmp_path, {"model.safetensors": 600, "more.safetensors": 500})
    with pytest.raises(UsageError, match="set VITRINA_MODELS_DIR"):
        toy()._check_room(tmp_path, {"model.safetensors": 600, "more.safetensors": 501})


def checkpoint(server: str, digest: str) -> CheckpointModel:
    return CheckpointModel(
        name="sam-toy",
        stage="segmentation",
        revision="abcdef",
        sha256=digest,
        licence="MIT",
        commercial=True,
        size=1,
        memory=1,
        url=f"{server}/sam_vit_h_abcdef.pth",
    )


def test_a_checkpoint_goes_on_where_it_stopped(tmp_path: Path, server: str) -> None:
    """And is compared with the published digest: what its name carries is of another kind."""
    model = checkpoint(server, hashlib.sha256(Server.weights).hexdigest())
    part = tmp_path / "sam-toy" / f"sam_vit_h_{model.revision}.pth.part"
    part.parent.mkdir()
    part.write_bytes(Server.weights[:4000])
    path = model.fetch(tmp_path)
    assert path.read_bytes() == Server.weights
    assert Server.ranges == ["bytes=4000-"]
    assert model.fetch(tmp_path) == path
    assert len(Server.ranges) == 1
    path.write_bytes(b"other")
    with pytest.raises(ModelCorruptError, match="SHA-256"):
        model.find(tmp_path)


def test_a_download_that_breaks_off_is_kept_and_gone_on_with(tmp_path: Path, server: str) -> None:
    """Gigabytes are not thrown away for a dropped connection."""
    model = checkpoint(server, hashlib.sha256(Server.weights).hexdigest())
    Server.cut.append(6000)
    with pytest.raises(UsageError, match="broke off"):
        model.fetch(tmp_path)
    with pytest.raises(ModelMissingError):
        model.find(tmp_path)
    assert model.fetch(tmp_path).read_bytes() == Server.weights
    assert Server.ranges == ["", "bytes=6000-"]


def test_a_checkpoint_of_other_bytes_is_refused(tmp_path: Path, server: str) -> None:
    """Nothing of it stays."""
    with pytest.raises(ModelCorruptError, match="did not give the published file"):
        checkpoint(server, "f" * 64).fetch(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UsageError, match="cannot download"):
        checkpoint("http://127.0.0.1:9", "f" * 64).fetch(tmp_path)
