"""The segmentation models on real photos. The catalogue is found by `VITRINA_CATALOGUE`, else beside the repository."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from PIL import Image

from shared.errors import ItemError, MaskMissingError, ModelMissingError, NoProductError
from shared.pictures import encode_jpeg, encode_png
from shared.recipe import Recipe
from shared.settings import Settings
from workers.stage import Result, Work

pytest.importorskip("onnxruntime", reason="the worker's libraries are not installed")

from workers.segmentation.refine import refine
from workers.segmentation.saliency import SaliencyModel
from workers.segmentation.supplied import SuppliedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

CATALOGUE = Path(
    os.environ.get("VITRINA_CATALOGUE") or Path(__file__).parents[2].joinpath("../shared/data/catalogue").resolve()
)
PHOTOS = sorted(CATALOGUE.glob("photos/*.jpg"))
LIMITS = {"max_bytes": 200_000_000, "max_pixels": 64_000_000}

needs_catalogue = pytest.mark.skipif(not PHOTOS, reason=f"no catalogue at {CATALOGUE}: set VITRINA_CATALOGUE")


@pytest.fixture(scope="module")
def model() -> SaliencyModel:
    """Load the saliency model, or skip where its weights were not fetched."""
    model = SaliencyModel(Settings().models_dir, **LIMITS)
    try:
        model.load("cpu", 1)
    except ModelMissingError as error:
        pytest.skip(str(error))
    return model


def run(model: SaliencyModel | SuppliedModel, data: bytes, recipe: Recipe | None = None, **inputs: bytes) -> Result:
    """Take one photo through a model's verbs."""
    work = Work("photo", recipe or Recipe(), data, inputs)
    item = model.prepare(work)
    return model.finish(work, item, model.infer([item])[0])


def picture(result: Result, kind: str) -> np.ndarray:
    """Decode one of the result's files."""
    return np.asarray(Image.open(io.BytesIO(result.artifacts[kind].data)))


def truth(photo: Path) -> np.ndarray:
    """Read the true mask of a catalogue photo."""
    return np.asarray(Image.open(CATALOGUE / "masks" / f"{photo.stem}.png").convert("L")) > 127


def haze(mask: np.ndarray) -> float:
    """Measure what is half-transparent over more than nine pixels each way, where an edge is two or three, in parts of the product."""
    soft = ((mask > 25) & (mask < 230)).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    return cv2.morphologyEx(soft, cv2.MORPH_OPEN, disc).sum() / (mask > 127).sum()


def blob(width: int, height: int) -> Image.Image:
    """Draw a dark red ellipse on light grey."""
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) / 0.3) ** 2 + ((y / height - 0.5) / 0.3) ** 2 < 1
    return Image.fromarray(np.where(inside[..., None], [150, 20, 30], [225, 225, 225]).astype(np.uint8))


def recipe(**segmentation: object) -> Recipe:
    """Make a recipe with these segmentation settings."""
    return Recipe.from_mapping({"segmentation": segmentation})


@needs_catalogue
def test_masks_agree_with_the_truth_and_product_pixels_are_the_photos_own(model: SaliencyModel) -> None:
    """Over the catalogue the mean IoU is at least 0.985 and none is under 0.94; opaque pixels are exact; only white on white is doubted."""
    scores = {}
    for photo in PHOTOS:
        result = run(model, photo.read_bytes())
        mask, cutout, true = picture(result, "mask"), picture(result, "cutout"), truth(photo)
        inside = mask > 127
        scores[photo.stem] = (inside & true).sum() / (inside | true).sum()
        source = np.asarray(Image.open(photo).convert("RGB"))
        np.testing.assert_array_equal(cutout[..., 3], mask)
        np.testing.assert_array_equal(cutout[mask == 255, :3], source[mask == 255])
        assert (mask[true] == 255).mean() > 0.95, f"{photo.stem}: the product is see-through"
        assert haze(mask) < 0.001, f"{photo.stem}: there is smoke around the product"
        assert result.reasons == (("mask_faint",) if photo.stem == "white-hoodie--white" else ()), photo.stem
    assert np.mean(list(scores.values())) >= 0.985, scores
    assert min(scores.values()) >= 0.94, scores


@needs_catalogue
def test_refining_gains_over_the_enlarged_map(model: SaliencyModel) -> None:
    """On a busy background the refined mask is nearer the truth than the model's own map."""
    photo = next(photo for photo in PHOTOS if photo.stem == "sunnies-dark--gravel")
    true = truth(photo)
    masks = [
        picture(run(model, photo.read_bytes(), recipe(model="saliency", refine=refine)), "mask") > 127
        for refine in (False, True)
    ]
    plain, refined = ((mask & true).sum() / (mask | true).sum() for mask in masks)
    assert refined > plain + 0.01


def bulging() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Draw a striped box before a striped wall, and a map of it that takes in six pixels of the wall on its right."""
    rows = np.arange(400)[:, None] // 20 % 2
    inside = np.zeros((400, 400), bool)
    inside[60:340, 80:300] = True
    product = np.where(rows[..., None], [245, 245, 245], [30, 90, 220])
    wall = np.where(rows[..., None], [150, 95, 75], [215, 165, 140])
    wrong = inside.copy()
    wrong[60:340, 300:306] = True
    colors = np.where(inside[..., None], product, wall).astype(np.uint8)
    return Image.fromarray(colors), wrong.astype(np.float32), inside


def test_colours_that_only_the_background_has_leave_the_cut_out() -> None:
    """Where the map takes a strip of wall for the product, no line through both products' and wall's colours tells them apart; how often each is seen does."""
    photo, wrong, inside = bulging()
    mask = refine(photo, wrong) > 127
    assert (mask != inside).mean() < 0.1 * (wrong.astype(bool) != inside).mean()


def test_where_the_colours_say_nothing_the_map_is_believed() -> None:
    """A product of the background's own colours keeps the map's outline."""
    photo = Image.fromarray(np.random.default_rng(5).integers(90, 160, (400, 400, 3)).astype(np.uint8))
    _, map_, _ = bulging()
    mask = refine(photo, map_) > 127
    assert (mask != map_.astype(bool)).mean() < 0.005


@needs_catalogue
def test_a_batch_gives_what_single_photos_give(model: SaliencyModel) -> None:
    """The maps of a batch are bit for bit those of the photos alone, in order."""
    items = [model.prepare(Work("k", Recipe(), photo.read_bytes())) for photo in PHOTOS[:3]]
    together: Sequence[np.ndarray | None] = model.infer(items)
    for item, output in zip(items, together, strict=True):
        np.testing.assert_array_equal(output, model.infer([item])[0])


def test_the_mask_is_the_last_file(model: SaliencyModel) -> None:
    """The mask's existence marks the stage as done, so it is written after the cutout."""
    assert list(run(model, encode_png(blob(200, 160))).artifacts) == ["cutout", "mask"]


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_photo_has_no_product(model: SaliencyModel, level: int, noise: int) -> None:
    """A flat frame, even a grainy one, is not stretched into a mask."""
    grain = np.random.default_rng(1).normal(level, noise, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    with pytest.raises(NoProductError):
        run(model, encode_png(Image.fromarray(grain)))


@pytest.mark.parametrize("size", [(16, 16), (16, 900), (640, 479)])
@pytest.mark.parametrize("refine", [True, False])
def test_any_shape_keeps_its_frame(model: SaliencyModel, size: tuple[int, int], refine: bool) -> None:
    """Tiny and narrow photos come out at their own size, or with nothing found."""
    try:
        result = run(model, encode_png(blob(*size)), recipe(model="saliency", refine=refine))
    except NoProductError:
        return
    assert picture(result, "mask").shape == size[::-1]
    assert picture(result, "cutout").shape == (*size[::-1], 4)


def test_a_panorama_is_cut_out(model: SaliencyModel) -> None:
    """A photo of 20,000 x 100 pixels comes out whole, its ellipse found."""
    photo = blob(20_000, 100)
    mask = picture(run(model, encode_png(photo)), "mask") > 127
    true = np.asarray(photo)[..., 1] < 100
    assert (mask & true).sum() / (mask | true).sum() > 0.9


def test_a_photo_with_alpha_is_cut_by_it_without_the_network() -> None:
    """A meaningful alpha channel is the mask, to the bit; nothing needs to be loaded for it."""
    model = SaliencyModel(Path("/nowhere"), **LIMITS)
    photo = blob(64, 48)
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    photo.putalpha(Image.fromarray(alpha))
    result = run(model, encode_png(photo))
    np.testing.assert_array_equal(picture(result, "mask"), alpha)
    np.testing.assert_array_equal(picture(result, "cutout")[alpha > 0], np.asarray(photo)[alpha > 0])
    item = model.prepare(Work("k", Recipe(), encode_png(photo)))
    assert model.bucket(item) != model.bucket(model.prepare(Work("k", Recipe(), encode_png(blob(64, 48)))))


def test_alpha_is_ignored_when_the_recipe_says_so(model: SaliencyModel) -> None:
    """With `use_alpha: false` the model looks at the colours."""
    photo = blob(320, 320)
    photo.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 320).astype(np.uint8), (320, 1))))
    result = run(model, encode_png(photo), recipe(model="saliency", use_alpha=False))
    assert result.measures["source"] == "model"
    assert picture(result, "mask")[160, 160] == 255


def test_edges_lose_the_background_they_were_mixed_with() -> None:
    """A soft edge over green comes out in the product's red; opaque pixels do not change."""
    matte = np.tile(np.clip((np.arange(100) - 40) * 16, 0, 255).astype(np.uint8), (80, 1))
    part = matte[..., None] / 255
    mixed = (part * [200, 30, 20] + (1 - part) * [20, 200, 40] + 0.5).astype(np.uint8)
    given = {"supplied_mask": encode_png(Image.fromarray(matte))}
    result = run(
        SuppliedModel(**LIMITS), encode_png(Image.fromarray(mixed)), recipe(model="none", mask="supplied"), **given
    )
    cutout = picture(result, "cutout")
    np.testing.assert_array_equal(cutout[matte == 255, :3], mixed[matte == 255])
    np.testing.assert_allclose(
        cutout[matte > 0, :3], np.broadcast_to([200, 30, 20], (int((matte > 0).sum()), 3)), atol=8
    )


def test_a_supplied_mask_of_the_photos_shape_is_resized() -> None:
    """A mask of half the size is enlarged to the photo's frame."""
    mask = Image.new("L", (50, 40))
    mask.paste(255, (10, 10, 40, 30))
    result = run(
        SuppliedModel(**LIMITS),
        encode_jpeg(blob(100, 80)),
        recipe(model="none", mask="supplied"),
        supplied_mask=encode_png(mask),
    )
    got = picture(result, "mask")
    assert got.shape == (80, 100)
    assert got[40, 50] == 255
    assert got[5, 5] == 0


def test_a_supplied_mask_of_another_shape_is_refused_with_figures() -> None:
    """The message names both sizes."""
    with pytest.raises(ItemError, match=r"50x50.*100x80"):
        run(
            SuppliedModel(**LIMITS),
            encode_jpeg(blob(100, 80)),
            recipe(model="none", mask="supplied"),
            supplied_mask=encode_png(Image.new("L", (50, 50), 255)),
        )


@pytest.mark.parametrize("mask", ["alpha", "supplied"])
def test_a_photo_without_its_mask_is_refused(mask: str) -> None:
    """An opaque photo, or one with no mask beside it, is an item's failure."""
    with pytest.raises(MaskMissingError):
        run(SuppliedModel(**LIMITS), encode_jpeg(blob(100, 80)), recipe(model="none", mask=mask))


def test_only_what_is_needed_is_read() -> None:
    """The mask beside the photo is fetched only for the recipe that names it."""
    model = SuppliedModel(**LIMITS)
    assert model.reads(recipe(model="none")) == ("source",)
    assert model.reads(recipe(model="none", mask="supplied")) == ("source", "supplied_mask")
