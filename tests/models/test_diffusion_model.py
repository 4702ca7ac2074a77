"""Generated backgrounds as a stage: the product's pixels untouched, wrong pictures tried again, bad items kept to themselves."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from made_diffusion import levels, save_all, section
from PIL import Image, ImageDraw

from shared.errors import NoProductError
from shared.pictures import GENERATED, encode_png
from shared.plan import Plan
from shared.recipe import Recipe
from workers.batcher import Batcher
from workers.inpainting.compose import eroded
from workers.inpainting.diffusion.engine import Engine
from workers.inpainting.diffusion.model import DiffusionModel, background_mask, growth
from workers.inpainting.framing import frame
from workers.stage import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from workers.inpainting.diffusion.model import Prepared
    from workers.stage import Result

LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000}
PRODUCT = (slice(80, 240), slice(80, 240))
"""Where the product of `work` lies, at the saliency network's size."""


class Seen:
    """A saliency network that sees the same part of every picture."""

    def __init__(self, rows: slice, columns: slice) -> None:
        self.found = np.zeros((320, 320), np.float32)
        self.found[rows, columns] = 1

    def load(self, threads: int) -> None:
        """Load nothing."""

    def run(self, tensor: np.ndarray) -> np.ndarray:
        """Return the map."""
        assert tensor.shape == (3, 320, 320)
        return self.found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines of the real classes with random weights, in the hub's layout."""
    return save_all(tmp_path_factory.mktemp("pipelines"), "9 channels", "kandinsky")


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    """The pipeline made for inpainting."""
    return folders["9 channels"]


def loaded(folder: Path, seen: Seen | None = None, **options: Any) -> DiffusionModel:
    model = DiffusionModel(section(folder, **options), folder, seen or Seen(*PRODUCT), **LIMITS)
    model.load("cpu", 1)
    return model


def work(
    folder: Path,
    *,
    size: tuple[int, int] = (96, 80),
    empty: bool = False,
    picture: dict[str, Any] | None = None,
    seed: int = 11,
    fields: dict[str, Any] | None = None,
    **options: Any,
) -> Work:
    """Make an item: noise with a rectangle in its middle as the product."""
    width, height = size
    photo = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    mask = Image.new("L", size)
    if not empty:
        ImageDraw.Draw(mask).rectangle((width // 4, height // 4, width * 3 // 4 - 1, height * 3 // 4 - 1), fill=255)
    cutout = photo.copy()
    cutout.putalpha(mask)
    recipe = Recipe(background=section(folder, **options)).model_dump(mode="json")
    recipe["picture"] |= {"format": "png", **(picture or {})}
    inputs = {"cutout": encode_png(cutout)}
    return Work(f"{seed}.png", Recipe.from_mapping(recipe), encode_png(photo), inputs, seed=seed, fields=fields or {})


def pixels(result: Result, kind: str = "image") -> np.ndarray:
    with Image.open(io.BytesIO(result.artifacts[kind].data)) as image:
        return np.asarray(image.convert("RGB"))


def run(model: DiffusionModel, *tasks: Work) -> list[Result]:
    """Take items of one bucket through a model's verbs, in one batch."""
    items = [model.prepare(task) for task in tasks]
    assert len({model.bucket(item) for item in items}) == 1
    answers = model.infer(items)
    return [model.finish(task, item, answer) for task, item, answer in zip(tasks, items, answers, strict=True)]


def pipe(model: DiffusionModel) -> Any:
    assert isinstance(model._engine, Engine)
    return model._engine._pipe


@pytest.mark.parametrize("name", ["9 channels", "kandinsky"])
@pytest.mark.parametrize("picture", [{}, {"size": [120, 90], "padding": 0.1}], ids=["own frame", "framed"])
def test_the_products_pixels_are_the_sources(folders: dict[str, Path], name: str, picture: dict[str, Any]) -> None:
    """Exactly equal inside the eroded mask, whatever was generated around it; the file says that it was generated."""
    task = work(folders[name], picture=picture)
    result = run(loaded(folders[name]), task)[0]
    framed = frame(task, **LIMITS)
    core = eroded(framed.alpha, task.recipe.picture.feather)
    assert core.sum() > 300
    assert np.array_equal(pixels(result)[core], framed.source[core])
    assert result.measures["preserved_max_difference"] == 0
    assert (result.measures["attempts"], result.measures["steps"]) == (1, 3)
    assert result.reasons == ()
    assert GENERATED.encode() in result.artifacts["image"].data


@pytest.mark.parametrize(
    ("size", "generated"), [((100, 100), [128, 128]), ((60, 240), [64, 192]), ((400, 200), [192, 64])]
)
def test_wide_and_tall_photos_keep_their_frame(folder: Path, size: tuple[int, int], generated: list[int]) -> None:
    """Whatever the size they were generated at; photos of unlike shapes do not share a batch."""
    model = loaded(folder, resolution=128)
    task = work(folder, size=size, resolution=128)
    result = run(model, task)[0]
    assert result.measures["generated"] == generated
    assert pixels(result).shape == (size[1], size[0], 3)
    square = model.prepare(work(folder, size=(80, 80), resolution=128))
    assert (model.bucket(model.prepare(task)) == model.bucket(square)) is (generated == [128, 128])


def test_a_picture_does_not_depend_on_its_batch(folder: Path) -> None:
    """Alone or among others, first or last: the same from the same seed, but for a level of rounding before it is enlarged."""
    model = loaded(folder)
    tasks = [work(folder, seed=seed, fields={"title": f"mug {seed}"}) for seed in (1, 2, 3)]
    alone = [pixels(run(model, task)[0]) for task in tasks]
    together = [pixels(result) for result in run(model, *tasks)]
    backwards = [pixels(result) for result in run(model, *reversed(tasks))][::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert levels(one, two) <= 2
        assert levels(one, three) <= 2


def test_the_items_own_prompt_and_seed_win(folder: Path) -> None:
    """Over the recipe's prompt; a seed of the recipe wins over all, for comparisons."""
    model = loaded(folder)
    item = model.prepare(work(folder, fields={"prompt": "on a beach", "seed": 5}))
    assert (item.prompt, item.seeds) == ("on a beach", (5,))
    assert model.prepare(work(folder, fields={"seed": 5}, prompt="x")).prompt == "x"
    assert model.prepare(work(folder, seed=12)).seeds == (12,)
    fixed = replace(work(folder, fields={"seed": 5}), recipe=Recipe(background=section(folder, seed=9)))
    assert model.prepare(fixed).seeds == (9,)


def test_variants_are_pictures_with_seeds_of_their_own(folder: Path) -> None:
    """Each has its name in the plan; the first comes last, so that its existence says that all exist. Measures stay small."""
    task, other = (work(folder, variants=8, seed=seed) for seed in (1, 2))
    result, second = run(loaded(folder, variants=8), task, other)
    assert list(result.artifacts) == ["image", *(f"image_{number}" for number in range(2, 9))]
    data = {artifact.data for some in (result, second) for artifact in some.artifacts.values()}
    assert len(data) == 16
    keys = Plan(task.recipe).outputs("a.png", "e").keys["inpainting"]
    assert list(keys) == [*(f"image_{number}" for number in range(8, 1, -1)), "image"]
    assert len(set(keys.values())) == 8
    assert all(key.startswith("a.png/image-") for key in keys.values())
    assert len(json.dumps(result.measures)) < 1000
    alone = run(loaded(folder), work(folder, seed=1))[0]
    assert levels(pixels(alone), pixels(result)) <= 2  # asking for more does not change the first


def spoil(model: DiffusionModel, level: float, tries: int) -> list[int]:
    """Let the autoencoder answer one level for the first picture of its first batches; return a record of their sizes."""
    sizes: list[int] = []

    def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        sizes.append(len(output))
        if len(sizes) > tries:
            return output
        output = output.clone()
        output[0] = level
        return output

    pipe(model).vae.decoder.register_forward_hook(hook)
    return sizes


@pytest.mark.parametrize(
    ("level", "tries", "attempts", "reasons"),
    [
        (-1.0, 1, 2, ()),
        (0.0, 2, 3, ()),
        (float("nan"), 9, 3, ("picture_black",)),
        (-1.0, 9, 3, ("picture_black",)),
        (0.0, 9, 3, ("picture_flat",)),
    ],
)
def test_wrong_pictures_are_tried_again_at_most_twice(
    folder: Path, level: float, tries: int, attempts: int, reasons: tuple[str, ...]
) -> None:
    """With another seed each time; the others of the batch are not made again, and come out as if alone."""
    model = loaded(folder)
    tasks = [work(folder, seed=1), work(folder, seed=2)]
    alone = run(model, tasks[1])[0]
    sizes = spoil(model, level, tries)
    unlucky, lucky = run(model, *tasks)
    assert sizes == [2] + [1] * (attempts - 1)
    assert (unlucky.measures["attempts"], unlucky.reasons) == (attempts, reasons)
    assert (unlucky.measures["seed"] == 1) is (attempts == 1)
    assert (lucky.measures["attempts"], lucky.measures["seed"], lucky.reasons) == (1, 2, ())
    assert levels(pixels(lucky), pixels(alone)) <= 2


def test_no_picture_is_tried_again_where_the_recipe_says_so(folder: Path) -> None:
    model = loaded(folder, reseeds=0)
    spoil(model, 0.0, 9)
    assert run(model, work(folder, reseeds=0))[0].measures["attempts"] == 1


def batched(model: DiffusionModel, items: list[Prepared]) -> list[Any]:
    """Run items through the worker's own batcher, the last ones in one batch; return what each ends with."""
    sizes: list[int] = []

    gathered = threading.Event()

    def infer(batch: Any) -> Any:
        assert gathered.wait(60)
        sizes.append(len(batch))
        return model.infer(batch)

    batcher: Batcher[Any, Any] = Batcher(infer, model.bucket, max_batch=8, deadline=600)
    waiting = [batcher.submit(item) for item in items]
    gathered.set()  # while the first was at work the others gathered
    ends = [future.exception() or future.result() for future in waiting]
    batcher.close()
    assert max(sizes) > 2
    return ends


def test_a_batch_that_does_not_fit_is_halved(folder: Path) -> None:
    """Torch's error for exhausted memory reaches the batcher, and every item still ends with its picture."""
    model = loaded(folder)

    def exhausted(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 4:  # two pictures, each with and without its prompt
            raise torch.OutOfMemoryError("CUDA out of memory")

    items = [model.prepare(work(folder, seed=seed)) for seed in range(6)]
    fits = [model.infer([item])[0][0].rgb for item in items]
    pipe(model).unet.register_forward_pre_hook(exhausted)
    for expected, end in zip(fits, batched(model, items), strict=True):
        assert levels(end[0].rgb, expected) <= 1


def test_a_worker_is_ready_once_its_network_is_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one picture, and for batches of any size."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # a compiler is not on every machine
    sizes: list[int] = []
    hooked = UNet2DConditionModel.forward
    monkeypatch.setattr(
        UNet2DConditionModel,
        "forward",
        lambda self, sample, *rest, **named: sizes.append(len(sample)) or hooked(self, sample, *rest, **named),
    )
    loaded(folder, compile=True, scheduler="ddim")
    # Two steps each, every picture with and without its prompt: one, two, and the largest batch.
    assert sizes == [2, 2, 4, 4, 16, 16]


def test_a_largest_batch_that_does_not_fit_is_no_end_of_a_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batcher finds the one that does; a single picture that does not fit ends it."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    fits = 4
    forward = UNet2DConditionModel.forward

    def cramped(self: Any, sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if len(sample) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, sample, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", cramped)
    loaded(folder, compile=True)
    fits = 1
    with pytest.raises(torch.OutOfMemoryError):
        loaded(folder, compile=True)


def test_a_photo_can_be_generated_at_its_own_size(folder: Path) -> None:
    """Down to multiples of eight, as the original script did it."""
    model = loaded(folder, resolution="native")
    item = model.prepare(work(folder, resolution="native"))
    height, width = item.product.alpha.shape
    assert item.size == (width - width % 8, height - height % 8)
    assert model.infer([item])[0][0].rgb.shape == (item.size[1], item.size[0], 3)


def test_one_bad_item_never_spoils_its_batch(folder: Path) -> None:
    """A text that the model cannot take fails its own item; one without a product never reaches the batch."""
    model = loaded(folder)
    encode: Callable[..., Any] = pipe(model).encode_prompt

    def choosy(prompt: str | None = None, *rest: Any, **options: Any) -> Any:
        if prompt == "bad":
            raise RuntimeError("no such word")
        return encode(prompt, *rest, **options)

    pipe(model).encode_prompt = choosy
    prompts = ["a", "b", "bad", "c", "d"]
    items = [model.prepare(work(folder, seed=n, fields={"prompt": prompt})) for n, prompt in enumerate(prompts)]
    ends = batched(model, items)
    assert isinstance(ends[2], RuntimeError)
    assert all(end[0].reason is None for number, end in enumerate(ends) if number != 2)
    with pytest.raises(NoProductError):
        model.prepare(work(folder, empty=True))


@pytest.mark.parametrize(
    ("seen", "limit", "reasons"),
    [
        (Seen(*PRODUCT), 0.1, ()),
        (Seen(slice(80, 240), slice(80, 320)), 0.1, ("picture_overgrown",)),
        (Seen(slice(80, 240), slice(80, 320)), 0.9, ()),
        (Seen(slice(80, 240), slice(80, 320)), None, ()),
        (Seen(slice(0, 0), slice(0, 0)), 0.1, ()),
    ],
    ids=["the product", "grown", "grown as allowed", "not looked at", "nothing"],
)
def test_a_grown_product_is_doubted(folder: Path, seen: Seen, limit: float | None, reasons: tuple[str, ...]) -> None:
    """The generated picture is segmented again: what lies beyond the mask is measured in parts of the product's area."""
    result = run(loaded(folder, seen), work(folder, max_growth=limit, mask_grow=0))[0]
    assert result.reasons == reasons
    assert (result.measures["growth"] is None) is (limit is None)


def test_growth_is_measured_beyond_the_products_edge() -> None:
    """In parts of its area, with some slack at the edge."""
    alpha = np.zeros((100, 100), np.uint8)
    alpha[40:60, 40:60] = 255
    wanted = background_mask(alpha, (100, 100), 0, 0)
    same, grown = np.zeros((320, 320), bool), np.zeros((320, 320), bool)
    same[126:194, 126:194] = True
    grown[128:192, 128:256] = True
    assert growth(same, wanted) == 0
    assert 0.7 < growth(grown, wanted) < 1


def test_the_mask_grows_by_pixels_of_the_generated_size() -> None:
    """So that the product's rim is never painted over; softening rounds it, and moves straight edges nowhere."""
    alpha = np.zeros((100, 100), np.uint8)
    alpha[40:60, 40:60] = 255
    plain, wide, soft = (background_mask(alpha, (100, 100), grow, blur) for grow, blur in ((0, 0), (4, 0), (4, 4)))
    assert (plain == 0).sum() == 400
    assert (wide[36:64, 50] == 0).all()
    assert wide[35, 50] == 1
    assert np.array_equal(soft[:, 50] >= 0.5, wide[:, 50] >= 0.5)


def test_the_first_scripts_settings_can_be_asked_for(folder: Path) -> None:
    """Guidance 15, 20 steps at strength 0.9, the weights' own scheduler, no grown mask, no second segmentation."""
    asked = {"guidance": 15.0, "steps": 20, "strength": 0.9, "scheduler": "published", "mask_grow": 0, "mask_blur": 0}
    words = {
        "prompt": "an object in a smooth background, smooth texture, realistic",
        "negative_prompt": "ugly, extra items",
    }
    model = loaded(folder, **asked, **words, max_growth=None)
    times: list[int] = []
    pipe(model).unet.register_forward_pre_hook(lambda *_: times.append(1))
    result = run(model, work(folder, **asked, **words, max_growth=None))[0]
    assert len(times) == 19  # PNDM takes one step twice
    assert result.measures["growth"] is None
