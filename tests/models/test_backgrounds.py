"""Backgrounds: the product's pixels are sacred, whatever stands behind them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shared.errors import NoProductError, UnreadablePictureError
from shared.pictures import GENERATED, encode_png
from shared.recipe import Recipe
from workers.inpainting import BACKGROUNDS
from workers.inpainting.compose import compose, eroded
from workers.inpainting.framing import Framed, frame
from workers.inpainting.shadow import cast_shadow, footing
from workers.stage import Result, Work

LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000}
RECIPES: dict[str, dict[str, Any]] = {
    "studio": {"background": {"model": "studio"}},
    "color": {"background": {"model": "color", "color": "#3366cc", "shadow": 0.5}},
    "image": {"background": {"model": "image", "image": "backgrounds/x.png"}},
    "transparent": {"background": {"model": "transparent"}, "picture": {"format": "png"}},
}
FRAMES: list[dict[str, Any]] = [{}, {"size": [300, 200], "padding": 0.1, "align": "bottom"}]


def photo(size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Make a picture of noise: any pixel that is not copied shows."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), np.uint8))


def work(
    name: str, picture: dict[str, Any], *, source: Image.Image | None = None, mask: Image.Image | None = None
) -> Work:
    source = source or photo()
    if mask is None:
        mask = Image.new("L", source.size)
        box = (source.width // 4, source.height // 4, source.width * 3 // 4, source.height * 3 // 4)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
    cutout = source.copy()
    cutout.putalpha(mask)
    recipe = Recipe.from_mapping(RECIPES[name] | {"picture": {**RECIPES[name].get("picture", {}), **picture}})
    inputs = {"cutout": encode_png(cutout), "background": encode_png(photo((50, 90)))}
    return Work("a.png", recipe, encode_png(source), inputs, seed=3)


def finished(name: str, task: Work) -> Result:
    model = BACKGROUNDS[name](**LIMITS)
    model.load("cpu", 1)
    prepared = model.prepare(task)
    return model.finish(task, prepared, model.infer([prepared])[0])


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("picture", FRAMES, ids=["own frame", "framed"])
def test_inside_the_eroded_mask_every_pixel_is_the_sources(name: str, picture: dict[str, Any]) -> None:
    """Exactly equal before encoding; PNG shows it after encoding too."""
    task = work(name, {**picture, "format": "png"})
    result = finished(name, task)
    product = frame(task, **LIMITS)
    core = eroded(product.alpha, task.recipe.picture.feather)
    with Image.open(io.BytesIO(result.artifacts["image"].data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert core.sum() > 500
    assert np.array_equal(pixels[core], product.source[core])
    assert result.measures["preserved_max_difference"] == 0
    assert result.measures["preserved_pixels"] == core.sum()


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_cutout_that_was_spoilt_in_the_catalogue_is_told_with_what_to_do(name: str) -> None:
    """Cut short, replaced by something else, or of another photo."""
    good = work(name, {})
    cutout = good.inputs["cutout"]
    for wrong in (b"", b"no picture", cutout[: len(cutout) // 2], encode_png(photo((80, 60)).convert("RGBA"))):
        with pytest.raises(UnreadablePictureError, match=r"the cutout .*: delete the photo's mask and cutout"):
            finished(name, replace(good, inputs={**good.inputs, "cutout": wrong}))


@pytest.mark.parametrize("feather", [0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("hard", [True, False], ids=["hard mask", "soft mask"])
def test_outside_the_mask_stands_the_background_alone(feather: float, hard: bool) -> None:
    """And nothing of the old one; inside, nothing of the new one."""
    mask = Image.new("L", (160, 120))
    ImageDraw.Draw(mask).rectangle((40, 30, 120, 90), fill=255)
    alpha = np.asarray(mask)
    if not hard:
        import cv2  # noqa: PLC0415

        alpha = cv2.GaussianBlur(alpha, (0, 0), 1.5).astype(np.uint8)
    source = np.asarray(photo())
    product = Framed(source, source, alpha, (40, 30, 121, 91), 1.0)
    background = np.full_like(source, 9)
    made = compose(product, background, feather)
    assert np.array_equal(made.rgb[alpha == 0], background[alpha == 0])
    assert np.array_equal(made.rgb[eroded(alpha, feather)], source[eroded(alpha, feather)])
    assert made.preserved_max_difference == 0


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((16, 16), (0, 0, 15, 15)),
        ((2000, 20), (0, 0, 1999, 19)),
        ((160, 120), (0, 0, 160, 120)),
        ((160, 120), (80, 60, 80, 60)),
    ],
    ids=["tiny", "very wide", "mask everywhere", "one pixel"],
)
def test_odd_products_still_become_pictures(name: str, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """Products at the border, masks of one pixel, photos of sixteen."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    result = finished(name, work(name, {"format": "png"}, source=photo(size), mask=mask))
    with Image.open(io.BytesIO(result.artifacts["image"].data)) as image:
        assert image.size == size


def test_an_empty_mask_is_no_product() -> None:
    """Rather than an empty shelf."""
    with pytest.raises(NoProductError):
        finished("studio", work("studio", {}, mask=Image.new("L", (160, 120))))


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    """A run twice in parallel writes one picture."""
    one, two = (finished(name, work(name, {})).artifacts["image"].data for _ in range(2))
    assert one == two


def test_a_colour_is_that_colour_far_from_the_product() -> None:
    """To the last level, shadow or not."""
    result = finished("color", work("color", {"format": "png"}))
    with Image.open(io.BytesIO(result.artifacts["image"].data)) as image:
        assert image.getpixel((0, 0)) == (0x33, 0x66, 0xCC)


def test_transparency_keeps_the_soft_edge() -> None:
    """Corners are clear, the product is not."""
    result = finished("transparent", work("transparent", {}))
    with Image.open(io.BytesIO(result.artifacts["image"].data)) as image:
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
        assert image.getpixel((80, 60))[3] == 255  # type: ignore[index]


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
def test_a_generated_background_is_marked_as_marketplaces_require(format_: str) -> None:
    """IPTC's digital source type travels in the file; a ready picture or colour is not marked."""
    assert GENERATED.encode() in finished("studio", work("studio", {"format": format_})).artifacts["image"].data
    assert GENERATED.encode() not in finished("color", work("color", {"format": format_})).artifacts["image"].data


def test_a_light_product_stands_out_from_its_backdrop() -> None:
    """White on white is no catalogue."""
    white = Image.new("RGB", (160, 120), "white")
    result = finished("studio", work("studio", {"format": "png"}, source=white))
    with Image.open(io.BytesIO(result.artifacts["image"].data)) as image:
        backdrop = np.asarray(image.convert("L"))[:20].mean()
    assert backdrop < 225


def backdrop(product: str, **background: object) -> np.ndarray:
    """Set a product of one colour on the studio's backdrop; returns the picture's top rows as numbers."""
    task = work("studio", {}, source=Image.new("RGB", (160, 120), product))
    recipe = Recipe.from_mapping({"background": {"model": "studio", **background}, "picture": {"format": "png"}})
    result = finished("studio", Work(task.key, recipe, task.source, task.inputs, seed=3))
    with Image.open(io.BytesIO(result.artifacts["image"].data)) as image:
        return np.asarray(image.convert("RGB"))[:20].astype(int)


def test_products_of_one_catalogue_stand_on_one_backdrop() -> None:
    """Whatever their hue, the grey behind them is the same and has none."""
    grey = backdrop("red")
    assert np.ptp(grey, axis=2).max() <= 1
    for color in ("lime", "yellow", "navy", "orange", "black"):
        assert np.array_equal(backdrop(color), grey), color


def test_a_colour_of_ones_own_wins_over_the_neutral_backdrop() -> None:
    """A brand's blue stays blue."""
    mean = backdrop("red", color="#3366cc").mean(axis=(0, 1))
    assert np.abs(mean - [0x33, 0x66, 0xCC]).max() < 16


def outlined(draw: str) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw a silhouette of 200 x 200 pixels in a frame of 400 x 400: a bottle's or a shirt's; returns it and its box."""
    mask = Image.new("L", (400, 400))
    pen = ImageDraw.Draw(mask)
    if draw == "shirt":
        pen.rectangle((100, 100, 299, 160), fill=255)  # the sleeves
        pen.rectangle((150, 100, 249, 299), fill=255)
    else:
        pen.rectangle((100, 140, 299, 299), fill=255)
        pen.rectangle((170, 100, 229, 140), fill=255)  # the neck
    return np.asarray(mask), (100, 100, 300, 300)


def shades(draw: str) -> tuple[float, float, float]:
    """Cast the silhouette's shadow on white: how dark it is four pixels above, beside and below."""
    mask, box = outlined(draw)
    dark = 255 - cast_shadow(np.full((400, 400, 3), 255, np.uint8), mask, box, 0.45)[..., 0].astype(float)
    return dark[96, 200], dark[150, 303], dark[303, 200]


def test_what_stands_has_the_floors_shadow_and_what_lies_an_even_rim() -> None:
    """A bottle is darkest below; a shirt seen from above is shaded alike on all sides, a little more below."""
    above, _, below = shades("bottle")
    assert below > 3 * above > 0
    above, beside, below = shades("shirt")
    assert above <= beside <= below < 2.5 * above
    assert above > 5


@pytest.mark.parametrize(("draw", "sure"), [("bottle", 1.0), ("shirt", 0.0)])
def test_a_wide_sole_tells_what_stands(draw: str, sure: float) -> None:
    """As wide below as anywhere is standing; half as wide is not."""
    assert footing(*outlined(draw)) == sure


def test_a_flat_picture_needs_review() -> None:
    """A product that vanishes in its background is not sent out unseen."""
    blue = Image.new("RGB", (160, 120), "#3366cc")
    task = work("color", {}, source=blue)
    recipe = Recipe.from_mapping({"background": {"model": "color", "color": "#3366cc"}})
    assert finished("color", Work(task.key, recipe, task.source, task.inputs)).reasons == ("picture_flat",)


def test_a_small_product_on_nothing_is_judged_by_itself() -> None:
    """The empty frame around it is neither black nor flat."""
    mask = Image.new("L", (160, 120))
    ImageDraw.Draw(mask).rectangle((70, 50, 82, 62), fill=255)
    assert finished("transparent", work("transparent", {}, mask=mask)).reasons == ()
