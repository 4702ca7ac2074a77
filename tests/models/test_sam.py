"""The whole `sam` choice, from a photo's bytes to its mask, with a tiny model of the same classes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.errors import ModelMissingError, NoProductError, PictureError, PromptError
from shared.pictures import encode_jpeg, encode_png
from shared.recipe import Recipe
from shared.settings import Settings
from workers.registry import make_model
from workers.stage import Model, Result, Work

pytest.importorskip("segment_anything", reason="the production models' libraries are not installed")

import cv2
import torch
from made_sam import taught_sam
from segment_anything import SamAutomaticMaskGenerator
from skimage import data

SIZE = 120, 96
POSSIBLE = {"min_predicted_iou": 0.1, "min_stability": 0.5, "points_per_side": 8}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("sam") / "taught.pth"
    torch.save(taught_sam().state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def model(weights: str) -> Model[Any, Any]:
    """Load through the registry, as a worker does."""
    model = make_model("segmentation", recipe(weights).segmentation, Settings())
    model.load("cpu", 1)
    return model


def recipe(weights: str, **segmentation: object) -> Recipe:
    """Make a recipe whose filters let the tiny model's masks pass; no prior unless asked for."""
    return Recipe.from_mapping(
        {"segmentation": {"model": "sam", "weights": weights, "prior": False} | POSSIBLE | segmentation}
    )


def photo(size: tuple[int, int] = SIZE, name: str = "astronaut") -> Image.Image:
    return Image.fromarray(getattr(data, name)()).resize(size, Image.Resampling.LANCZOS)


def run(model: Model[Any, Any], settings: Recipe, image: Image.Image, **fields: Any) -> Result:
    """Take one photo through the four verbs."""
    work = Work("photo", settings, encode_png(image), fields=fields)
    item = model.prepare(work)
    return model.finish(work, item, model.infer([item])[0])


def picture(result: Result, kind: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(result.artifacts[kind].data)))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def disc(x: float, y: float, radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[: size[1], : size[0]]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2)


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("size", [SIZE, (1000, 800)], ids=["small", "large"])
def test_a_photo_becomes_a_mask_and_a_cutout_of_its_own_size(
    model: Model[Any, Any], weights: str, size: tuple[int, int], refine: bool
) -> None:
    """The files are the photo's full frame, opaque pixels are the photo's own, the mask comes last, the record is small."""
    image = photo(size)
    result = run(model, recipe(weights, refine=refine), image)
    mask, cutout = picture(result, "mask"), picture(result, "cutout")
    assert mask.shape == size[::-1]
    assert 0.01 < (mask > 127).mean() < 0.95
    np.testing.assert_array_equal(cutout[..., 3], mask)
    np.testing.assert_array_equal(cutout[mask == 255, :3], np.asarray(image)[mask == 255])
    assert list(result.artifacts) == ["cutout", "mask"]
    measures = result.measures
    assert measures["source"] == "model"
    assert measures["refined"] is refine
    assert measures["choice"] == "product"
    assert 5 <= measures["candidates"] <= 60
    assert 0 <= measures["runner_up"] <= measures["score"] <= 1
    assert len(json.dumps(measures)) < 1000


def test_the_mask_depends_on_the_photo_alone(model: Model[Any, Any], weights: str) -> None:
    """One photo has one mask, whichever photos of whatever shape share its batch, and wherever it stands in it."""
    settings = recipe(weights)
    photos = [photo(), photo((90, 120), "coffee"), photo((400, 400), "chelsea")]
    works = [Work(str(index), settings, encode_png(image)) for index, image in enumerate(photos)]
    items = [model.prepare(work) for work in works]
    assert len({model.bucket(item) for item in items}) == 1
    alone = [picture(run(model, settings, image), "mask") for image in photos]
    for order in ([0, 1, 2], [2, 0, 1, 2]):
        outputs = model.infer([items[index] for index in order])
        for index, output in zip(order, outputs, strict=True):
            mask = picture(model.finish(works[index], items[index], output), "mask")
            # Sums of another order round otherwise: a level of 255 at an edge, no more.
            np.testing.assert_allclose(mask.astype(int), alone[index], atol=2)


def test_one_photo_without_a_product_does_not_spoil_its_batch(model: Model[Any, Any], weights: str) -> None:
    """Filters that no mask of one photo passes: it fails alone, by its name, and its neighbour is what it is alone."""
    images = [photo(), photo((90, 120), "coffee")]
    items = [model.prepare(Work("", recipe(weights), encode_png(image))) for image in images]
    best = [float(masks.predicted_iou.max()) for masks in model.infer(items)]
    settings = recipe(weights, min_predicted_iou=sum(best) / 2)
    works = [Work(str(index), settings, encode_png(images[index])) for index in np.argsort(best)]
    items = [model.prepare(work) for work in works]
    without, good = model.infer(items)
    with pytest.raises(NoProductError):
        model.finish(works[0], items[0], without)
    mask = picture(model.finish(works[1], items[1], good), "mask")
    alone = picture(run(model, settings, images[int(np.argmax(best))]), "mask")
    np.testing.assert_allclose(mask.astype(int), alone, atol=2)


def test_a_point_gets_the_mask_there(model: Model[Any, Any], weights: str) -> None:
    """The tiny model was taught discs: a point in the photo's pixels gives one around it, at any size of the photo."""
    for size, scale in ((SIZE, 1), ((1200, 960), 10)):
        x, y = 40 * scale, 50 * scale
        result = run(model, recipe(weights, refine=False), photo(size), points=[[x, y, 1]])
        mask = picture(result, "mask") > 127
        best = max(overlap(mask, disc(x, y, part * size[0] * 128 / 120, size)) for part in (0.1, 0.18, 0.3))
        assert best > 0.5
        assert result.measures["choice"] == "prompt"
        assert "choice_unsure" not in result.reasons


def test_prompts_of_one_shape_share_a_batch(model: Model[Any, Any], weights: str) -> None:
    """Two photos with a point and a box each are answered together as alone; photos with other prompts wait elsewhere."""
    settings = recipe(weights)
    rows: list[dict[str, Any]] = [
        {"points": [[30, 30, 1]], "box": [10, 10, 60, 60]},
        {"points": [[80, 60, 1]], "box": [50, 30, 110, 90]},
        {"points": [[80, 60, 1]]},
        {"points": [[80, 60, 1], [5, 5, 0]]},
        {"box": [50, 30, 110, 90]},
        {},
    ]
    works = [Work(str(index), settings, encode_png(photo()), fields=row) for index, row in enumerate(rows)]
    items = [model.prepare(work) for work in works]
    assert [model.bucket(item) == model.bucket(items[0]) for item in items] == [True, True, *[False] * 4]
    assert len({model.bucket(item) for item in items}) == 5
    for work, item, output in zip(works, items[:2], model.infer(items[:2]), strict=False):
        mask = picture(model.finish(work, item, output), "mask")
        alone = picture(run(model, settings, photo(), **work.fields), "mask")
        np.testing.assert_allclose(mask.astype(int), alone, atol=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": [[130, 50, 1]]}, "130, 50 lies outside the photo of 120x96"),
        ({"points": [[50, -1, 1]]}, "outside"),
        ({"points": [[50, 50]]}, r"\[x, y, 1\]"),
        ({"points": [[50, 50, 2]]}, r"\[x, y, 1\]"),
        ({"points": [[50, "50", 1]]}, r"\[x, y, 1\]"),
        ({"points": [[float("nan"), 50, 1]]}, r"\[x, y, 1\]"),
        ({"points": []}, "1 to 64"),
        ({"points": "50,50,1"}, "1 to 64"),
        ({"points": [[50, 50, 0]]}, "no point lies on the product"),
        ({"box": [10, 10, 20]}, "left, top, right, bottom"),
        ({"box": [10, 10, 10, 50]}, "holds no part"),
        ({"box": [60, 10, 20, 50]}, "holds no part"),
        ({"box": [10, 10, 500, 50]}, "reaches out of its 120x96"),
        ({"box": [True, 10, 20, 50]}, "left, top, right, bottom"),
    ],
)
def test_an_impossible_prompt_is_the_items_failure(
    model: Model[Any, Any], weights: str, fields: dict[str, Any], message: str
) -> None:
    """The message says what is wrong; nothing reaches the batch."""
    with pytest.raises(PromptError, match=message) as caught:
        run(model, recipe(weights), photo(), **fields)
    assert caught.value.reason == "bad_prompt"


def test_a_broken_photo_is_the_items_failure(model: Model[Any, Any], weights: str) -> None:
    with pytest.raises(PictureError):
        model.prepare(Work("photo", recipe(weights), b"junk"))


def test_a_photo_with_alpha_is_cut_by_it(model: Model[Any, Any], weights: str) -> None:
    """A meaningful alpha channel is the mask, to the bit, in a bucket of its own; a prompt or the recipe overrules it."""
    image = photo()
    alpha = np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))
    image.putalpha(Image.fromarray(alpha))
    result = run(model, recipe(weights), image)
    np.testing.assert_array_equal(picture(result, "mask"), alpha)
    assert result.measures["source"] == "alpha"
    assert run(model, recipe(weights, use_alpha=False), image).measures["source"] == "model"
    assert run(model, recipe(weights), image, points=[[40, 50, 1]]).measures["choice"] == "prompt"
    buckets = {model.bucket(model.prepare(Work("", recipe(weights), encode_png(each)))) for each in (image, photo())}
    assert len(buckets) == 2


def test_the_seeds_choice_is_the_original_scripts(model: Model[Any, Any], weights: str) -> None:
    """Mask, morphology and blur of the original, made here of segment-anything's own masks, give the same matte."""
    image = photo()
    theirs = SamAutomaticMaskGenerator(
        taught_sam(), points_per_side=8, pred_iou_thresh=0.1, stability_score_thresh=0.5
    ).generate(np.asarray(image))
    background = theirs[0] if theirs[0]["bbox"][0] < 10 else theirs[1]
    found = background["segmentation"].astype(np.uint8) * 255
    found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (10, 10)))
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (20, 20)))
    expected = 255 - cv2.GaussianBlur(found, (35, 35), 0)
    result = run(model, recipe(weights, choice="seed"), image)
    np.testing.assert_allclose(picture(result, "mask").astype(int), expected, atol=8)
    assert result.measures["choice"] == "seed"


def test_an_unsure_choice_needs_review(model: Model[Any, Any], weights: str) -> None:
    """Discs everywhere: nothing tells which is the product, and the record says so."""
    result = run(model, recipe(weights), photo())
    assert "choice_unsure" in result.reasons
    assert result.measures["score"] >= result.measures["runner_up"]


def test_the_prior_has_a_say(weights: str) -> None:
    """With the saliency model, the mask lies where the photo's product is."""
    settings = recipe(weights, prior=True, min_lead=0)
    model = make_model("segmentation", settings.segmentation, Settings())
    try:
        model.load("cpu", 1)
    except ModelMissingError as error:
        pytest.skip(str(error))
    place = disc(35, 60, 22)
    image = Image.fromarray(np.where(place[..., None], [150, 20, 30], [225, 225, 225]).astype(np.uint8))
    result = run(model, settings, image)
    assert result.measures["choice"] == "product with prior"
    assert overlap(picture(result, "mask") > 127, place) > 0.4
    assert "choice_unsure" not in result.reasons


def test_what_is_loaded_and_what_only_steers() -> None:
    """Filters and the choice share one loaded model; weights, precision and the prior do not."""
    base = recipe("a").segmentation.identity()
    assert recipe("a", points_per_side=32, refine=False).segmentation.identity() == base
    others = recipe("b"), recipe("a", precision="float16"), recipe("a", prior=True)
    assert base not in {other.segmentation.identity() for other in others}


def test_missing_weights_are_named(tmp_path: Path) -> None:
    model = make_model("segmentation", recipe(str(tmp_path / "none.pth")).segmentation, Settings())
    with pytest.raises(ModelMissingError, match=r"none\.pth"):
        model.load("cpu", 1)


def test_a_jpeg_goes_the_same_way(model: Model[Any, Any], weights: str) -> None:
    """The photo's format changes nothing but its noise."""
    work = Work("photo", recipe(weights), encode_jpeg(photo()))
    item = model.prepare(work)
    assert picture(model.finish(work, item, model.infer([item])[0]), "mask").shape == SIZE[::-1]
