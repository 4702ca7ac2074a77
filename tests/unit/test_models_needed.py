"""What a recipe names: weights, packaged recipes, and what a machine must have for them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from producer.cli import app
from producer.needs import needs, weights_of
from producer.recipes import FOLDER, find_recipe, names
from shared.errors import ModelMissingError, UsageError
from shared.models import REGISTRY, HubModel, known, locate, weights_revision
from shared.recipe import Recipe
from shared.settings import Settings


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    """A driver's tool that reports two GPUs, the larger of so many GB; None for a machine without a driver."""
    folder = tmp_path / "driver"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    tool = folder / "nvidia-smi"

    def report(memory: float | None) -> None:
        lines = "exit 9" if memory is None else f"echo 512\necho {int(memory * 1e9) // 2**20}"
        tool.write_text(f"#!/bin/sh\n{lines}\n")
        tool.chmod(0o755)

    return report


def test_weights_are_presets_hub_ids_or_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset's name means the preset, whatever lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "kandinsky-2.2").mkdir()
    (tmp_path / "sam_vit_b.pth").touch()
    assert locate(str(tmp_path / "own"), tmp_path) == tmp_path / "own"
    assert locate("./own", tmp_path) == Path("own")
    assert locate("sam_vit_b.pth", tmp_path) == Path("sam_vit_b.pth")
    with pytest.raises(ModelMissingError, match=r"models fetch kandinsky-2\.2"):
        locate("kandinsky-2.2", tmp_path / "models")
    assert known("opus-mt-en-de").origin == "Helsinki-NLP/opus-mt-en-de@main"
    assert known("owner/name@v1").origin == "owner/name@v1"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("owner/name@v1", "vitrina models fetch owner/name@v1"),
        ("opus-mt-en-de", "vitrina models fetch opus-mt-en-de"),
        ("sam-vit-h", "vitrina models fetch sam-vit-h"),
        ("dreamshaper8", "did you mean dreamshaper-8?"),
        ("kandinsky-2.1", "did you mean kandinsky-2.2?"),
        ("./gone", "no model at ./gone: correct the path"),
        ("owner/name", "name the hub's owner/name@revision"),
        ("nonsense", "vitrina models list"),
    ],
)
def test_missing_weights_say_what_to_do(tmp_path: Path, weights: str, said: str) -> None:
    """The command to run, the likely name, or what a name looks like; in one line."""
    with pytest.raises(ModelMissingError) as missing:
        locate(weights, tmp_path)
    assert said in str(missing.value)
    assert "\n" not in str(missing.value)


@pytest.mark.parametrize(
    "model", [m for m in REGISTRY.values() if isinstance(m, HubModel)], ids=lambda model: model.name
)
def test_hub_models_are_pinned(model: HubModel) -> None:
    """To a commit, never to a branch; a recipe's outputs are named by it."""
    assert re.fullmatch("[0-9a-f]{40}", model.revision)
    assert weights_revision(model.name) == model.revision
    assert all(name in REGISTRY for name in model.also)


def test_what_is_not_known_of_a_model_is_not_made_up() -> None:
    """Licence and commercial use of a model that nobody has looked up."""
    for name in ("owner/name@v1", "opus-mt-en-de"):
        assert known(name).commercial is None
        assert "see the model's page" in known(name).licence


@pytest.mark.parametrize("name", names())
def test_every_packaged_recipe_is_valid(name: str) -> None:
    """And is found by its name."""
    assert find_recipe(name) == FOLDER / f"{name}.yaml"
    recipe = Recipe.load(find_recipe(name))
    assert all(known(weights) for weights in weights_of(recipe))
    assert (recipe == Recipe()) == (name == "starter")


def test_a_misspelt_recipe_is_told_apart_from_a_missing_file() -> None:
    """With the likely name."""
    with pytest.raises(UsageError, match=r"did you mean production\?"):
        find_recipe("producton")
    with pytest.raises(UsageError, match=r"no recipe file gone\.yaml.*production, seed, starter, vlm"):
        find_recipe("gone.yaml")


@pytest.mark.parametrize("name", ["production", "vlm", "starter"])
def test_what_we_recommend_may_be_used_commercially(name: str) -> None:
    """Only the baseline may not."""
    assert all(known(weights).commercial for weights in weights_of(Recipe.load(find_recipe(name))))
    assert not known("blip2-opt-2.7b").commercial


def test_the_seed_recipe_says_what_the_script_did() -> None:
    """The baseline of every comparison."""
    recipe: Any = Recipe.load(find_recipe("seed"))
    segmentation, background, caption = recipe.segmentation, recipe.background, recipe.caption
    assert (segmentation.weights, segmentation.points_per_side, segmentation.choice) == ("sam-vit-h", 32, "seed")
    assert (background.weights, background.scheduler) == ("dreamshaper-8", "published")
    assert (background.guidance, background.steps, background.strength) == (15, 20, 0.9)
    assert background.resolution == "native"
    assert background.prompt == "an object in a smooth background, smooth texture, realistic"
    assert background.negative_prompt == "ugly, extra items"
    assert (caption.weights, caption.prompt, caption.source) == ("blip2-opt-2.7b", "", "image")
    assert (caption.languages, caption.translation_beams) == (("en", "ru"), "published")
    assert "opus-mt-en-ru" in weights_of(recipe)


def test_a_lora_is_fetched_with_its_recipe() -> None:
    """Like the weights it is added to."""
    recipe = Recipe.from_mapping({"background": {"model": "diffusion", "lora": "lcm-lora-sd15"}})
    assert {"dreamshaper-8", "lcm-lora-sd15"} <= set(weights_of(recipe, "inpainting"))


def test_missing_weights_fail_a_job_and_a_licence_is_only_told(
    tmp_path: Path, gpu: Callable[[float | None], None]
) -> None:
    """Before it begins."""
    gpu(200)
    findings = needs(Recipe.load(find_recipe("seed")), Settings(models_dir=tmp_path))
    assert {finding.name for finding in findings if finding.well is False} == {
        "model sam-vit-h",
        "model dreamshaper-8",
        "model u2netp",
        "model blip2-opt-2.7b",
        "model opus-mt-en-ru",
    }
    told = [finding for finding in findings if finding.well is None]
    assert [finding.name for finding in told] == ["model blip2-opt-2.7b"]
    assert "not for commercial use" in told[0].text


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        (200, []),
        (20, [("device", None)]),
        (10, [("captioning", None)]),
        (6.1, [("segmentation", None), ("captioning", False)]),
        (None, [("device", None)]),
    ],
)
def test_a_gpu_that_is_too_small_is_told_before_the_job(
    tmp_path: Path, gpu: Callable[[float | None], None], memory: float | None, told: list[tuple[str, bool | None]]
) -> None:
    """Fails what cannot fit, tells what may not, says nothing where there is room."""
    gpu(memory)
    findings = needs(Recipe.load(find_recipe("production")), Settings(models_dir=tmp_path))
    assert [(found.name, found.well) for found in findings if not found.name.startswith("model ")] == told


def test_the_starter_models_need_no_gpu(tmp_path: Path, gpu: Callable[[float | None], None]) -> None:
    """Nothing is said of one."""
    gpu(None)
    assert {found.name for found in needs(Recipe(), Settings(models_dir=tmp_path))} == {
        "model u2netp",
        "model efficientnet-lite0",
    }


def test_missing_packages_are_named_with_what_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per stage."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in {"diffusers", "accelerate"} else there(name)
    )
    findings = needs(Recipe.load(find_recipe("production")), Settings(models_dir=tmp_path))
    assert [found.text for found in findings if found.name == "inpainting"] == [
        "needs diffusers, accelerate: install vitrina[worker,production]"
    ]


def test_the_list_shows_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset, and what was fetched beside them with the commit that it was pinned to."""
    commit = "a" * 40
    (tmp_path / "opus-mt-en-de").mkdir()
    record = {"name": "opus-mt-en-de", "commit": commit, "files": {}}
    (tmp_path / "opus-mt-en-de" / "vitrina.json").write_text(json.dumps(record))
    monkeypatch.setenv("VITRINA_MODELS_DIR", str(tmp_path))
    done = CliRunner().invoke(app, ["models", "list"])
    assert done.exit_code == 0, done.output
    for model in REGISTRY.values():
        assert model.origin in done.stdout
        assert model.licence in done.stdout
    assert f"opus-mt-en-de@main ({commit})" in done.stdout
    assert "commercial use: no\n" in done.stdout
    assert "commercial use: not known" in done.stdout
    done = CliRunner().invoke(app, ["models", "list", "--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout.splitlines()[-1])["models"]}
    assert set(rows) == {*REGISTRY, "opus-mt-en-de"}
    assert rows["blip2-opt-2.7b"]["commercial"] is False
    assert (rows["opus-mt-en-de"]["on_disk"], rows["opus-mt-en-de"]["commit"]) == ("yes", commit)


def test_the_doctor_looks_at_what_a_recipe_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with status 1 when it would fail."""
    monkeypatch.setenv("VITRINA_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    done = CliRunner().invoke(app, ["doctor", "--recipe", "seed"], standalone_mode=False)
    assert done.return_value == 1
    assert "vitrina models fetch dreamshaper-8" in done.stdout
    assert "not for commercial use" in done.stdout
