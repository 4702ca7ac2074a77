"""What is fetched of a repository is all that a worker needs to read it: tiny models of the real classes, in the hub's layout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file

from shared.models import HubModel
from shared.recipe import Blip2Caption, DiffusionBackground, VlmCaption
from workers.captioning.blip2 import read_blip2, read_processors
from workers.captioning.translation import Translator
from workers.captioning.vlm import VlmModel
from workers.inpainting.diffusion.engine import load_engine
from workers.random_models.diffusion import save_inpainting, save_inpainting_xl, save_kandinsky, save_lora
from workers.random_models.language import save_blip2, save_marian, save_vlm

CPU = torch.device("cpu")
LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000}
TINY = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}


class Hub:
    """A repository in a folder, behind as much of the hub's library as fetching calls."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def HfApi(self) -> Hub:  # noqa: N802 - the library's name
        return self

    def model_info(self, repo: str, **_: Any) -> Any:
        files = [path for path in self.repository.rglob("*") if path.is_file()]
        siblings = [
            SimpleNamespace(
                rfilename=path.relative_to(self.repository).as_posix(),
                size=path.stat().st_size,
                lfs=SimpleNamespace(sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
            )
            for path in files
        ]
        return SimpleNamespace(id=repo, sha="c" * 40, siblings=siblings)

    def snapshot_download(self, _: str, *, local_dir: Path, allow_patterns: list[str], **__: Any) -> None:
        for name in allow_patterns:
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, local_dir / name)


def fetched(repository: Path, folder: Path) -> Path:
    """Fetch from a repository that holds, as published ones do, files for other programs beside its own."""
    (repository / "README.md").write_text("a card")
    (repository / "handler.py").write_text("raise SystemExit('code of a repository was run')")
    (repository / "single-file.safetensors").write_bytes(b"for other programs")
    for weights in [*repository.rglob("*model.safetensors")]:
        if weights.name != "single-file.safetensors":
            weights.with_suffix(".bin").write_bytes(b"not to be read")
    model = HubModel(
        name="toy", stage=None, revision="main", licence="MIT", commercial=True, size=1, memory=1, repo="shop/toy"
    )
    found = model._fetch(folder / "toy", Hub(repository))
    assert found == model.find(folder)
    strange = [path.name for path in found.rglob("*") if path.suffix in {".py", ".md"} or path.stem == "single-file"]
    assert not strange
    return found


def with_checker(folder: Path, halves: set[str], fulls: set[str]) -> Path:
    """Save a pipeline with a safety checker; the named parts come in half and in full precision."""
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(save_inpainting(folder / "plain"))
    config = transformers.CLIPConfig(
        vision_config={**TINY, "image_size": 32, "patch_size": 16, "projection_dim": 32},
        text_config={**TINY, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2},
        projection_dim=32,
    )
    pipeline.register_modules(
        safety_checker=StableDiffusionSafetyChecker(config), feature_extractor=transformers.CLIPImageProcessor()
    )
    pipeline.register_to_config(requires_safety_checker=True)
    for variant, kept in ((None, fulls), ("fp16", halves)):
        pipeline.save_pretrained(folder / str(variant), variant=variant)
        for weights in (folder / str(variant)).rglob("*.safetensors"):
            if weights.parent.name not in kept:
                weights.unlink()
        shutil.copytree(folder / str(variant), folder / "repository", dirs_exist_ok=True)
    return folder / "repository"


PARTS = {"unet", "vae", "text_encoder", "safety_checker"}


@pytest.mark.parametrize(
    ("halves", "fulls"),
    [(PARTS, PARTS), (PARTS - {"safety_checker"}, PARTS), (set(), PARTS), (PARTS, set()), (PARTS - {"vae"}, {"vae"})],
    ids=["both", "checker in full", "full", "half", "one part in full"],
)
@pytest.mark.parametrize("checker", [False, True])
def test_a_fetched_pipeline_loads(tmp_path: Path, halves: set[str], fulls: set[str], *, checker: bool) -> None:
    """With its safety checker and without, in whatever precisions its repository has; no part comes twice."""
    folder = fetched(with_checker(tmp_path, halves, fulls), tmp_path / "models")
    assert len(list(folder.rglob("*.safetensors"))) == len(PARTS)
    section = DiffusionBackground(model="diffusion", safety_checker=checker)
    engine: Any = load_engine(folder, None, section, CPU, torch.float32)
    assert (engine._pipe.safety_checker is not None) == checker


def test_a_fetched_sdxl_loads(tmp_path: Path) -> None:
    """Two text encoders, two tokenizers."""
    folder = fetched(save_inpainting_xl(tmp_path / "xl"), tmp_path / "models")
    assert load_engine(folder, None, DiffusionBackground(model="diffusion"), CPU, torch.float32)


def test_a_fetched_lora_loads(tmp_path: Path) -> None:
    """One file; the pipeline comes from another repository."""
    pipeline = save_inpainting(tmp_path / "pipeline")
    folder = fetched(save_lora(tmp_path / "lora", pipeline), tmp_path / "models")
    assert load_engine(pipeline, None, DiffusionBackground(model="diffusion"), CPU, torch.float32, lora=folder)


def test_a_fetched_kandinsky_loads_with_its_prior(tmp_path: Path) -> None:
    """Two repositories."""
    decoder = save_kandinsky(tmp_path / "decoder")
    prior = shutil.move(decoder / "prior", tmp_path / "prior")
    folders = [fetched(Path(place), tmp_path / f"models-{Path(place).name}") for place in (decoder, prior)]
    assert load_engine(folders[0], folders[1], DiffusionBackground(model="diffusion"), CPU, torch.float32)


@pytest.mark.parametrize("writer", ["opt", "t5"])
def test_a_fetched_blip2_loads(tmp_path: Path, writer: Any) -> None:
    """Its shards, its processor, its tokenizer."""
    folder = fetched(save_blip2(tmp_path / "blip2", writer=writer), tmp_path / "models")
    _, tokenizer = read_processors(folder, "blip2")
    network = read_blip2(folder, Blip2Caption(model="blip2"), CPU, torch.float32)
    assert tokenizer("a shoe")["input_ids"]
    assert network.config.image_token_index is not None


@pytest.mark.parametrize("safe", [True, False])
def test_a_fetched_translator_loads(tmp_path: Path, *, safe: bool) -> None:
    """From safetensors, or from PyTorch's own format where the repository has no other."""
    repository = save_marian(tmp_path / "marian")
    if not safe:
        torch.save(load_file(repository / "model.safetensors"), repository / "pytorch_model.bin")
        (repository / "model.safetensors").unlink()
    folder = fetched(repository, tmp_path / "models")
    assert (folder / "model.safetensors").exists() == safe
    assert Translator(folder, str(folder), "ru", CPU, torch.float32)


def test_a_fetched_vision_language_model_loads(tmp_path: Path) -> None:
    """With its chat template."""
    folder = fetched(save_vlm(tmp_path / "vlm"), tmp_path / "models")
    VlmModel(VlmCaption(model="vlm", weights=str(folder)), tmp_path, **LIMITS).load("cpu", 1)
