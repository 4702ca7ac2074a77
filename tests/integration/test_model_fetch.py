"""Fetching models over HTTP: a hub and a file server of our own on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from producer.needs import needs, weights_of
from producer.recipes import FOLDER, find_recipe, names
from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models import HubModel, known, locate
from shared.models.checkpoints import CheckpointModel
from shared.recipe import Recipe
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
COMMIT = "c" * 40
FILES = {
    "model_index.json": b'{"_class_name": "X"}',
    "unet/config.json": b"{}",
    "unet/model.fp16.safetensors": b"half" * 1000,
    "unet/model.safetensors": b"full" * 2000,
    "safety_checker/model.fp16.safetensors": b"checker",
    "run.py": b"print('never fetched')",
}


class Server(BaseHTTPRequestHandler):
    """Speaks as much of the hub as fetching needs, and serves one file with ranges."""

    protocol_version = "HTTP/1.1"
    weights: ClassVar[bytes] = b"0123456789" * 1000
    asked: ClassVar[list[str]] = []
    ranges: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, *, head: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/shop/toy/revision/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            self.send(json.dumps({"id": "shop/toy", "sha": COMMIT, "siblings": siblings}).encode(), head=head)
        elif path.startswith("/api/models/shop/toy/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
            self.send(json.dumps(tree).encode(), head=head)
        elif path.startswith(f"/shop/toy/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/shop/toy/resolve/{COMMIT}/")
            if not head:
                self.asked.append(name)
            self.send(FILES[name], head=head)
        elif path.endswith(".pth"):
            self.send_range(self.weights)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, data: bytes, *, head: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def send_range(self, data: bytes) -> None:
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if first >= len(data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first:])


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    Server.ranges.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


FETCH = (
    "import sys; from pathlib import Path; from shared.models import HubModel; from shared.errors import VitrinaError\n"
    "model = HubModel(name='toy', stage='inpainting', revision='main', licence='MIT', commercial=True, size=1, memory=1,"
    " repo=sys.argv[2], weights=('*.fp16.safetensors',), otherwise=('*.safetensors',), without=('safety_checker/*',))\n"
    "try: print(model.fetch(Path(sys.argv[1])))\n"
    "except VitrinaError as error: sys.exit(f'{error.reason}: {error}')\n"
)


def fetch(folder: Path, endpoint: str, repo: str = "shop/toy", **environment: str) -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own: the hub's library reads the endpoint when it is imported."""
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", FETCH, str(folder), repo],
        env=os.environ | quiet | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def toy(**options: Any) -> HubModel:
    given = {"name": "toy", "stage": "inpainting", "revision": "main", "licence": "MIT", "commercial": True}
    return HubModel(**{**given, "size": 1, "memory": 1, "repo": "shop/toy", **options})


def test_a_hub_model_is_fetched_once_and_whole(tmp_path: Path, server: str) -> None:
    """Half precision where there is any, configurations, no code; the commit is pinned and a second fetch asks for nothing."""
    done = fetch(tmp_path, server)
    assert done.returncode == 0, done.stderr
    assert sorted(set(Server.asked)) == ["model_index.json", "unet/config.json", "unet/model.fp16.safetensors"]
    assert toy().find(tmp_path) == tmp_path / "toy"
    assert toy().commit(tmp_path) == COMMIT
    Server.asked.clear()
    assert fetch(tmp_path, server).returncode == 0
    assert Server.asked == []


def test_a_part_of_a_hub_model_never_passes_for_the_whole(tmp_path: Path, server: str) -> None:
    """A file cut short or gone is missing; the next fetch brings it."""
    assert fetch(tmp_path, server).returncode == 0
    weights = tmp_path / "toy" / "unet" / "model.fp16.safetensors"
    weights.write_bytes(b"ha")
    with pytest.raises(ModelMissingError, match="vitrina models fetch toy"):
        toy().find(tmp_path)
    weights.unlink()
    assert fetch(tmp_path, server).returncode == 0
    assert toy().find(tmp_path)
    (tmp_path / "toy" / "vitrina.json").unlink()
    with pytest.raises(ModelMissingError):
        toy().find(tmp_path)


@pytest.mark.parametrize(
    ("repo", "environment", "said"),
    [
        ("shop/gone", {}, "the hub has no shop/gone@main"),
        ("shop/toy", {"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        ("shop/toy", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot bring shop/toy@main"),
    ],
)
def test_what_keeps_a_model_away_is_one_clear_line(
    tmp_path: Path, server: str, repo: str, environment: dict[str, str], said: str
) -> None:
    """No such repository, offline, no network."""
    done = fetch(tmp_path, server, repo, **environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def checkpoint(server: str, digest: str) -> CheckpointModel:
    return CheckpointModel(
        name="sam-toy",
        stage="segmentation",
        revision=digest[:6],
        licence="MIT",
        commercial=True,
        size=1,
        memory=1,
        url=f"{server}/sam_vit_h_{digest[:6]}.pth",
    )


def test_a_checkpoint_goes_on_where_it_stopped(tmp_path: Path, server: str) -> None:
    """And is compared with the digest that its name carries."""
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


def test_a_checkpoint_of_other_bytes_is_refused(tmp_path: Path, server: str) -> None:
    """Nothing of it stays."""
    with pytest.raises(ModelCorruptError, match="did not give the published file"):
        checkpoint(server, "f" * 64).fetch(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UsageError, match="cannot download"):
        checkpoint("http://127.0.0.1:9", "f" * 64).fetch(tmp_path)


def test_weights_are_presets_hub_ids_or_paths(tmp_path: Path) -> None:
    """What is none of these says what to do."""
    (tmp_path / "own").mkdir()
    assert locate(str(tmp_path / "own"), tmp_path) == tmp_path / "own"
    assert known("opus-mt-en-de").origin == "Helsinki-NLP/opus-mt-en-de@main"
    assert known("owner/name@v1").origin == "owner/name@v1"
    with pytest.raises(ModelMissingError, match="models fetch owner/name@v1"):
        locate("owner/name@v1", tmp_path)
    with pytest.raises(ModelMissingError, match=r"did you mean dreamshaper-8\?"):
        locate("dreamshaper8", tmp_path)
    with pytest.raises(ModelMissingError, match=r"no model at \./gone"):
        locate("./gone", tmp_path)


@pytest.mark.parametrize("name", names())
def test_every_packaged_recipe_is_valid(name: str) -> None:
    """And is found by its name."""
    assert find_recipe(name) == FOLDER / f"{name}.yaml"
    recipe = Recipe.load(find_recipe(name))
    assert all(known(weights) for weights in weights_of(recipe))
    assert (recipe == Recipe()) == (name == "starter")


def test_the_seed_recipe_says_what_the_script_did() -> None:
    """The baseline of every comparison."""
    recipe: Any = Recipe.load(find_recipe("seed"))
    assert (recipe.segmentation.weights, recipe.segmentation.points_per_side) == ("sam-vit-h", 32)
    background = recipe.background
    assert (background.weights, background.guidance, background.steps, background.strength) == (
        "dreamshaper-8",
        15,
        20,
        0.9,
    )
    assert background.prompt == "an object in a smooth background, smooth texture, realistic"
    assert background.negative_prompt == "ugly, extra items"
    assert (recipe.caption.weights, recipe.caption.prompt, recipe.caption.source) == ("blip2-opt-2.7b", "", "image")


def test_what_a_job_would_lack_is_told_before_it(tmp_path: Path) -> None:
    """Missing weights fail it; a licence is only told."""
    findings = needs(Recipe.load(find_recipe("seed")), Settings(models_dir=tmp_path))
    assert {finding.name for finding in findings if finding.well is False} == {
        "model sam-vit-h",
        "model dreamshaper-8",
        "model u2netp",
        "model blip2-opt-2.7b",
        "model opus-mt-en-ru",
    }
    assert [finding.name for finding in findings if finding.well is None] == ["model blip2-opt-2.7b"]
    with pytest.raises(UsageError, match=r"did you mean production\?"):
        find_recipe("producton")
