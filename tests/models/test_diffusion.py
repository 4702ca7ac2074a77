"""Generated backgrounds: the library's own results in batches, the product's pixels untouched, wrong pictures caught."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from shared.errors import ModelCorruptError, ModelMissingError, NoProductError, RecipeError, UsageError
from shared.models import find
from shared.pictures import GENERATED, encode_png
from shared.plan import Plan
from shared.recipe import DiffusionBackground, Recipe
from shared.settings import Settings
from workers.inpainting.compose import eroded
from workers.inpainting.diffusion.engine import (
    Engine,
    KandinskyEngine,
    Picture,
    Request,
    load_engine,
    scheduler_for,
)
from workers.inpainting.diffusion.model import DiffusionModel, background_mask, fault, growth
from workers.inpainting.diffusion.presets import PRESETS, bucket, settings
from workers.inpainting.diffusion.prompts import prompt_for
from workers.inpainting.framing import frame
from workers.random_models.diffusion import save_inpainting, save_inpainting_xl, save_kandinsky
from workers.stage import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE = 64
LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000}
CPU = torch.device("cpu")
SAVE: dict[str, Callable[[Path], Path]] = {
    "9 channels": save_inpainting,
    "4 channels": lambda folder: save_inpainting(folder, channels=4),
    "xl": save_inpainting_xl,
    "xl 4 channels": lambda folder: save_inpainting_xl(folder, channels=4),
    "kandinsky": save_kandinsky,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines of the real classes with random weights, in the hub's layout."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(root / name.replace(" ", "-")) for name, save in SAVE.items()}


@pytest.fixture(scope="module")
def starter() -> Path:
    """The saliency network's folder: the gate against grown products needs it."""
    folder = Settings().models_dir
    try:
        find("u2netp", folder)
    except ModelMissingError as error:
        pytest.skip(str(error))
    return folder


def section(folder: Path, **options: Any) -> DiffusionBackground:
    return DiffusionBackground(model="diffusion", weights=str(folder), **{"resolution": SIDE, "steps": 3, **options})


def engine(folder: Path, **options: Any) -> tuple[Engine | KandinskyEngine, Any]:
    chosen = section(folder, **options)
    loaded = load_engine(folder, folder / "prior" if (folder / "prior").is_dir() else None, chosen, CPU, torch.float32)
    return loaded, settings(chosen, loaded.native)


def request(seed: int, prompt: str = "a red shoe") -> Request:
    noise = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    mask = np.ones((SIDE, SIDE), np.float32)
    mask[16:48, 16:40] = 0
    return Request(noise, mask, prompt, "text", seed)


def levels(one: np.ndarray, two: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - two.astype(int)).max())


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("name", ["9 channels", "4 channels", "xl", "xl 4 channels"])
def test_a_batch_gives_what_the_library_gives_one_by_one(folders: dict[str, Path], name: str, strength: float) -> None:
    """Same weights, pictures, seeds and settings: at most one level of 255, which is rounding."""
    loaded, chosen = engine(folders[name], strength=strength)
    assert isinstance(loaded, Engine)
    requests = [request(1), request(2, "a blue mug"), request(3)]
    batch = loaded.generate(requests, chosen)
    pipe = loaded._pipe
    for asked, ours in zip(requests, batch, strict=True):
        pipe.scheduler = scheduler_for(chosen.scheduler, loaded._published)
        own = pipe(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            image=Image.fromarray(asked.image),
            mask_image=Image.fromarray((asked.mask * 255).astype(np.uint8)),
            height=SIDE,
            width=SIDE,
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance,
            strength=strength,
            generator=torch.Generator().manual_seed(asked.seed),
            output_type="np",
        ).images[0]
        assert np.abs(own * 255 - ours.rgb).max() <= 1


@pytest.mark.parametrize("name", SAVE)
def test_the_same_seed_gives_the_same_picture_in_any_batch(folders: dict[str, Path], name: str) -> None:
    """Whatever stands beside it, and in which place; another seed gives another picture."""
    loaded, chosen = engine(folders[name])
    alone = loaded.generate([request(7)], chosen)[0].rgb
    among = loaded.generate([request(5), request(6), request(7)], chosen)
    assert levels(alone, among[2].rgb) <= 1
    assert levels(alone, loaded.generate([request(7), request(5)], chosen)[0].rgb) <= 1
    assert levels(among[0].rgb, among[1].rgb) > 20


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "euler", "euler-a", "unipc", "lcm"])
def test_every_scheduler_runs(folders: dict[str, Path], scheduler: str) -> None:
    """By the name the recipe calls it."""
    loaded, chosen = engine(folders["9 channels"], scheduler=scheduler)
    assert loaded.generate([request(1), request(2)], chosen)[1].rgb.shape == (SIDE, SIDE, 3)


def test_a_compiled_network_sees_few_batch_sizes(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures are run as four, and three come back."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # a compiler is not on every machine
    loaded, chosen = engine(folders["9 channels"], compile=True)
    assert isinstance(loaded, Engine)
    sizes: list[int] = []
    loaded._pipe.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert len(loaded.generate([request(1), request(2), request(3)], chosen)) == 3
    assert set(sizes) == {8}  # four, each with and without its prompt


def test_prompts_are_encoded_once(folders: dict[str, Path]) -> None:
    """A job has one prompt, or one per category."""
    loaded, chosen = engine(folders["9 channels"])
    assert isinstance(loaded, Engine)
    calls: list[int] = []
    loaded._pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        loaded.generate([request(1), request(2)], chosen)
    assert len(calls) == 2  # the prompt and the negative one


@pytest.mark.parametrize("options", [{"tiling": True}, {"offload": "none", "precision": "bfloat16"}])
def test_memory_settings_change_how_and_not_what(folders: dict[str, Path], options: dict[str, Any]) -> None:
    """Tiles and half precision give a picture of the same size from the same seed."""
    loaded, chosen = engine(folders["9 channels"], **options)
    assert loaded.generate([request(1)], chosen)[0].rgb.shape == (SIDE, SIDE, 3)


def test_what_is_no_pipeline_is_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    """An empty folder, a damaged index, Kandinsky without its prior."""
    with pytest.raises(ModelCorruptError, match="fetch it again"):
        engine(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelCorruptError, match="fetch it again"):
        engine(tmp_path)
    with pytest.raises(UsageError, match="its prior belongs in"):
        load_engine(folders["kandinsky"], None, section(folders["kandinsky"]), CPU, torch.float32)


@pytest.mark.parametrize(
    ("frame_size", "expected"),
    [((1000, 1000), (512, 512)), ((3000, 2000), (640, 448)), ((900, 1600), (384, 704)), ((4000, 400), (704, 384))],
)
def test_frames_share_a_few_sizes(frame_size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Near the native area, in multiples that the network takes."""
    width, height = bucket(*frame_size, 512)
    assert (width, height) == expected
    assert abs(width * height / 512**2 - 1) < 0.15


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"category": "shoes", "title": "Runner 5"}, "a photo of shoes Runner 5, light grey background"),
        ({"category": "shoes"}, "a photo of shoes, light grey background"),
        ({}, "a photo, light grey background"),
        ({"prompt": "on a beach"}, "on a beach"),
    ],
)
def test_prompts_are_filled_without_trace_of_what_is_missing(fields: dict[str, str], expected: str) -> None:
    chosen = DiffusionBackground(model="diffusion", prompt="a photo of {category} {title}, {color} background")
    assert prompt_for(chosen, fields) == expected


def product(size: tuple[int, int] = (96, 80)) -> tuple[Image.Image, Image.Image]:
    photo = Image.fromarray(np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), fill=255)
    return photo, mask


def work(folder: Path, *, empty: bool = False, picture: dict[str, Any] | None = None, **options: Any) -> Work:
    photo, mask = product()
    cutout = photo.copy()
    cutout.putalpha(Image.new("L", photo.size) if empty else mask)
    recipe = Recipe(background=section(folder, **options)).model_dump(mode="json")
    recipe["picture"] |= {"format": "png", **(picture or {})}
    inputs = {"cutout": encode_png(cutout)}
    return Work("a.png", Recipe.from_mapping(recipe), encode_png(photo), inputs, seed=11)


def loaded(folder: Path, starter: Path, **options: Any) -> DiffusionModel:
    # Paths are given outright; the starter's folder is for the saliency network alone.
    model = DiffusionModel(section(folder, **options), starter, **LIMITS)
    model.load("cpu", 1)
    return model


@pytest.mark.parametrize("picture", [{}, {"size": [120, 90], "padding": 0.1}], ids=["own frame", "framed"])
def test_the_products_pixels_are_the_sources(folders: dict[str, Path], starter: Path, picture: dict[str, Any]) -> None:
    """Exactly equal inside the eroded mask, whatever was generated around it; the file says that it was generated."""
    task = work(folders["9 channels"], picture=picture)
    model = loaded(folders["9 channels"], starter)
    prepared = model.prepare(task)
    result = model.finish(task, prepared, model.infer([prepared])[0])
    framed = frame(task, **LIMITS)
    core = eroded(framed.alpha, task.recipe.picture.feather)
    data = result.artifacts["image"].data
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert core.sum() > 300
    assert np.array_equal(pixels[core], framed.source[core])
    assert result.measures["preserved_max_difference"] == 0
    assert result.measures["attempts"] == 1
    assert GENERATED.encode() in data


def test_variants_are_pictures_with_seeds_of_their_own(folders: dict[str, Path], starter: Path) -> None:
    """Each has its name in the plan; the first comes last, so that its existence says that all exist."""
    task = work(folders["9 channels"], variants=3)
    model = loaded(folders["9 channels"], starter, variants=3)
    items = [model.prepare(task), model.prepare(task)]
    answers = model.infer(items)
    result = model.finish(task, items[0], answers[0])
    assert [len(answer) for answer in answers] == [3, 3]
    assert set(result.artifacts) == {"image", "image_2", "image_3"}
    assert len({artifact.data for artifact in result.artifacts.values()}) == 3
    keys = Plan(task.recipe).outputs("a.png", "e").keys["inpainting"]
    assert list(keys) == ["image_3", "image_2", "image"]
    assert len(set(keys.values())) == 3
    assert all(key.startswith("a.png/image-") for key in keys.values())


class Blank:
    """An engine whose first pictures are wrong: `bad` of them for each seed's item."""

    native = SIDE

    def __init__(self, bad: int, *, blanked: bool = False) -> None:
        self.bad = bad
        self.blanked = blanked
        self.batches: list[list[int]] = []

    def generate(self, requests: list[Request], _: object) -> list[Picture]:
        self.batches.append([asked.seed for asked in requests])
        noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        wrong = len(self.batches) <= self.bad
        black = np.zeros((SIDE, SIDE, 3), np.uint8)
        # Only the first item of the first batch is unlucky.
        return [
            Picture(black if wrong and i == 0 else noise, self.blanked and wrong and i == 0)
            for i in range(len(requests))
        ]


@pytest.mark.parametrize(
    ("bad", "blanked", "attempts", "reason"),
    [(1, False, 2, None), (2, True, 3, None), (9, False, 3, "picture_black"), (9, True, 3, "picture_unsafe")],
)
def test_wrong_pictures_are_tried_again_at_most_twice(
    starter: Path, bad: int, blanked: bool, attempts: int, reason: str | None
) -> None:
    """With another seed each time; the others of the batch are not made again."""
    model = DiffusionModel(section(starter), starter, **LIMITS)
    model._engine = fake = Blank(bad, blanked=blanked)  # type: ignore[assignment]
    prepared = model.prepare(work(starter))
    answers = model.infer([prepared, prepared])
    assert (answers[0][0].attempts, answers[0][0].reason) == (attempts, reason)
    assert (answers[1][0].attempts, answers[1][0].reason) == (1, None)
    assert [len(batch) for batch in fake.batches] == [2] + [1] * (attempts - 1)
    assert len({batch[0] for batch in fake.batches}) == attempts


def test_a_grown_product_is_doubted() -> None:
    """What a second segmentation finds beyond the mask is measured in parts of the product's area."""
    alpha = np.zeros((100, 100), np.uint8)
    alpha[40:60, 40:60] = 255
    wanted = background_mask(alpha, (100, 100), 0, 0)
    same, grown = np.zeros((320, 320), bool), np.zeros((320, 320), bool)
    same[128:192, 128:192] = True
    grown[128:192, 128:256] = True
    assert growth(same, wanted) == 0
    assert 0.7 < growth(grown, wanted) < 1


def test_the_mask_grows_by_pixels_of_the_generated_size() -> None:
    """So that the product's rim is never painted over."""
    alpha = np.zeros((100, 100), np.uint8)
    alpha[40:60, 40:60] = 255
    plain = background_mask(alpha, (100, 100), 0, 0)
    wide = background_mask(alpha, (100, 100), 4, 0)
    assert (plain == 0).sum() == 400
    assert (wide[36:64, 50] == 0).all()
    assert wide[34, 50] == 1


def test_flat_and_black_pictures_are_faults() -> None:
    gates = Recipe().picture.gates
    assert fault(Picture(np.full((8, 8, 3), 120, np.uint8)), gates) == "picture_flat"
    assert fault(Picture(np.zeros((8, 8, 3), np.uint8)), gates) == "picture_black"
    assert fault(Picture(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)), gates) is None


def test_an_item_without_a_product_fails_alone(folders: dict[str, Path], starter: Path) -> None:
    """It never reaches the batch."""
    model = loaded(folders["9 channels"], starter)
    with pytest.raises(NoProductError):
        model.prepare(work(folders["9 channels"], empty=True))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="runs no step"):
        Recipe.from_mapping({"background": {"model": "diffusion", "steps": 1, "strength": 0.5}})


def test_every_preset_fills_the_gaps() -> None:
    """The recipe's own settings win."""
    for name, preset in PRESETS.items():
        chosen = settings(DiffusionBackground(model="diffusion", weights=name), 8)
        assert (chosen.resolution, chosen.steps, chosen.guidance) == (preset.resolution, preset.steps, preset.guidance)
    own = settings(DiffusionBackground(model="diffusion", weights="sdxl", steps=7, guidance=0.0, resolution=768), 8)
    assert (own.resolution, own.steps, own.guidance) == (768, 7, 0.0)
