"""LoRAs: added to the network as it is loaded, and refused where they do not belong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from made_diffusion import CPU, SIDE, engine, levels, request, save_all, section
from safetensors.torch import load_file, save_file

from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.plan import Plan
from shared.recipe import DiffusionBackground, Recipe
from workers.inpainting.diffusion.engine import load_engine
from workers.inpainting.diffusion.lora import FILE
from workers.inpainting.diffusion.model import DiffusionModel
from workers.inpainting.diffusion.presets import settings
from workers.random_models.diffusion import save_lora

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

NAMES = ["9 channels", "4 channels", "xl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines with random weights, in the hub's layout."""
    return save_all(tmp_path_factory.mktemp("pipelines"), *NAMES, "kandinsky")


@pytest.fixture(scope="module")
def loras(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA for each, in the layout of published ones."""
    root = tmp_path_factory.mktemp("loras")
    return {name: save_lora(root / name.replace(" ", "-"), folders[name]) for name in NAMES}


def loaded(folder: Path, lora: Path | None, **options: Any) -> Any:
    """Load a pipeline with a LoRA the way the worker does."""
    chosen = section(folder, lora=None if lora is None else str(lora), **options)
    prior = folder / "prior"
    return load_engine(folder, prior if prior.is_dir() else None, chosen, CPU, torch.float32, lora=lora)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_becomes_what_the_library_makes_of_it(
    folders: dict[str, Path], loras: dict[str, Path], name: str
) -> None:
    """Fused once, for good: the same pictures as with the library's own adapter at work beside every layer, and others than without."""
    with_lora, (plain, chosen) = loaded(folders[name], loras[name], lora_scale=0.5), engine(folders[name])
    assert not with_lora._pipe.get_list_adapters()
    beside = engine(folders[name])[0]
    pipeline = beside._pipe  # type: ignore[union-attr] # no Kandinsky
    pipeline.load_lora_weights(loras[name], weight_name=FILE, adapter_name="own")
    pipeline.set_adapters("own", 0.5)
    asked = [request(1), request(2)]
    for ours, theirs, without in zip(
        *(each.generate(asked, chosen) for each in (with_lora, beside, plain)), strict=True
    ):
        assert levels(ours.rgb, theirs.rgb) <= 1
        assert levels(ours.rgb, without.rgb) > 5


def test_a_file_does_as_well_as_its_folder(folders: dict[str, Path], loras: dict[str, Path]) -> None:
    """The same weights either way."""
    folder, lora = folders["9 channels"], loras["9 channels"]
    one, two = (loaded(folder, path)._pipe.unet.state_dict() for path in (lora, lora / FILE))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "lora"), [("9 channels", "xl"), ("xl", "9 channels")], ids=["xl's for sd15", "sd15's for xl"]
)
def test_another_models_lora_is_told(folders: dict[str, Path], loras: dict[str, Path], name: str, lora: str) -> None:
    """In one line, as the worker starts."""
    with pytest.raises(UsageError, match="was made for another model: choose one for these weights") as told:
        loaded(folders[name], loras[lora])
    assert "\n" not in str(told.value)


def test_a_lora_that_fits_in_part_is_told(folders: dict[str, Path], loras: dict[str, Path], tmp_path: Path) -> None:
    """Half of one would be neither the model nor the LoRA."""
    matrices = load_file(loras["9 channels"] / FILE)
    layer = "lora_unet_down_blocks_7_resnets_0_conv1"
    matrices |= {
        f"{layer}.lora_down.weight": torch.ones(4, 32, 3, 3),
        f"{layer}.lora_up.weight": torch.ones(64, 4, 1, 1),
    }
    save_file(matrices, tmp_path / FILE)
    with pytest.raises(UsageError, match=r"made for another model"):
        loaded(folders["9 channels"], tmp_path)
    save_file(
        {"unet.other.lora_A.weight": torch.ones(4, 8), "unet.other.lora_B.weight": torch.ones(8, 4)}, tmp_path / FILE
    )
    with pytest.raises(UsageError, match=r"made for another model"):
        loaded(folders["9 channels"], tmp_path)


def test_what_is_no_lora_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    """A folder without one, a damaged file, another network's weights, a format that could run code."""
    folder = folders["9 channels"]
    with pytest.raises(UsageError, match=f"{FILE} is no LoRA in safetensors: name such a file"):
        loaded(folder, tmp_path)
    (tmp_path / FILE).write_bytes(b"cut short")
    with pytest.raises(ModelCorruptError, match=r"cannot read the LoRA .*: fetch it again"):
        loaded(folder, tmp_path)
    save_file({"conv_in.weight": torch.ones(2, 2)}, tmp_path / FILE)
    with pytest.raises(UsageError, match="made for another model"):
        loaded(folder, tmp_path)
    (tmp_path / "lora.bin").write_bytes(b"pickled")
    with pytest.raises(UsageError, match="is no LoRA in safetensors"):
        loaded(folder, tmp_path / "lora.bin")


def test_kandinsky_takes_none(folders: dict[str, Path], loras: dict[str, Path]) -> None:
    """A folder of one is known only once it is opened; the preset is refused with the recipe."""
    with pytest.raises(UsageError, match=r"takes no LoRA: leave background\.lora out"):
        loaded(folders["kandinsky"], loras["xl"])


def test_the_lcm_loras_cut_steps_unless_the_recipe_says_otherwise() -> None:
    """Others leave the preset's settings alone."""
    fast = settings(DiffusionBackground(model="diffusion", lora="lcm-lora-sd15"), 512)
    assert (fast.scheduler, fast.steps, fast.guidance, fast.resolution) == ("lcm", 6, 1.5, 512)
    own = settings(
        DiffusionBackground(model="diffusion", weights="sdxl", lora="lcm-lora-sdxl", steps=4, guidance=1.0), 8
    )
    assert (own.scheduler, own.steps, own.guidance, own.resolution) == ("lcm", 4, 1.0, 1024)
    style = settings(DiffusionBackground(model="diffusion", lora="./house-style"), 512)
    assert style == settings(DiffusionBackground(model="diffusion"), 512)


def test_the_stage_loads_what_its_recipe_names(
    folders: dict[str, Path], loras: dict[str, Path], tmp_path: Path
) -> None:
    """From the models' folder by name, like any weights; one that is not on disk is told by name."""
    folder = folders["9 channels"]

    class Blind:
        def load(self, threads: int) -> None:
            """Load nothing."""

        def run(self, tensor: np.ndarray) -> np.ndarray:
            """Return the map."""
            return tensor[0]

    def unet(lora: str | None) -> Any:
        model = DiffusionModel(section(folder, lora=lora), tmp_path, Blind(), max_bytes=1_000_000, max_pixels=1_000_000)
        model.load("cpu", 1)
        return model._engine._pipe.unet.state_dict()  # type: ignore[union-attr] # no Kandinsky

    name = next(name for name in unet(None) if "to_q" in name)
    assert not torch.equal(unet(str(loras["9 channels"]))[name], unet(None)[name])
    with pytest.raises(ModelMissingError, match="run `vitrina models fetch lcm-lora-sd15`"):
        unet("lcm-lora-sd15")


def test_few_steps_give_the_same_picture_in_any_batch(folders: dict[str, Path], loras: dict[str, Path]) -> None:
    """The scheduler of LCMs draws noise at every step: each picture its own."""
    fast = loaded(folders["9 channels"], loras["9 channels"])
    chosen = settings(section(folders["9 channels"], lora="lcm-lora-sd15", steps=None), fast.native)
    assert (chosen.steps, chosen.scheduler, chosen.resolution) == (6, "lcm", SIDE)
    alone = fast.generate([request(3)], chosen)[0].rgb
    assert levels(alone, fast.generate([request(1), request(3)], chosen)[1].rgb) <= 1


def test_another_lora_makes_other_outputs() -> None:
    """Only where it is used: masks stay."""
    marks = [
        Plan(Recipe.from_mapping({"background": {"model": "diffusion", **lora}})).outputs("a.jpg", "1").fingerprints
        for lora in ({}, {"lora": "lcm-lora-sd15"}, {"lora": "shop/style@1"}, {"lora": "shop/style@2"})
    ]
    assert len({mark["inpainting"] for mark in marks}) == len(marks)
    assert len({mark["segmentation"] for mark in marks}) == 1


def test_a_half_precision_pipeline_stays_one(folders: dict[str, Path], loras: dict[str, Path]) -> None:
    """A LoRA in full precision does not double the memory."""
    pipe = load_engine(
        folders["9 channels"], None, section(folders["9 channels"]), CPU, torch.bfloat16, lora=loras["9 channels"]
    )._pipe  # type: ignore[union-attr] # no Kandinsky
    assert isinstance(pipe, diffusers.StableDiffusionInpaintPipeline)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.bfloat16}
