"""What makes a mask doubted, and what makes it useless."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shared.errors import NoProductError
from shared.recipe import MaskGates

pytest.importorskip("cv2", reason="the worker's libraries are not installed")

from workers.segmentation.gates import mask_reasons
from workers.segmentation.outline import faint_part
from workers.segmentation.refine import tidy


def blank(height: int = 100, width: int = 200) -> np.ndarray:
    """Make an empty mask."""
    return np.zeros((height, width), np.uint8)


def test_a_plain_product_passes_with_its_measures() -> None:
    """A block in the middle gives no reasons, and its exact area, border and pieces."""
    mask = blank()
    mask[25:75, 50:150] = 255
    assert mask_reasons(mask, MaskGates()) == ((), {"area": 0.25, "border": 0.0, "fragments": 1})


def test_an_empty_mask_is_no_product() -> None:
    """Nothing at or over half opacity means that there is nothing to cut out."""
    with pytest.raises(NoProductError):
        mask_reasons(np.full((100, 200), 127, np.uint8), MaskGates())


def test_a_speck_is_small() -> None:
    """Less than the least area is doubted."""
    mask = blank()
    mask[50:55, 50:55] = 255
    assert mask_reasons(mask, MaskGates())[0] == ("mask_small",)


def test_the_whole_frame_is_large_and_touches_the_border() -> None:
    """A mask of everything is doubted twice."""
    reasons, measures = mask_reasons(np.full((100, 200), 255, np.uint8), MaskGates())
    assert reasons == ("mask_large", "mask_border")
    assert measures["border"] == 1


def test_each_border_pixel_counts_once() -> None:
    """The top row of a square is its share of the frame's rim, corners counted once."""
    mask = blank(10, 10)
    mask[0] = 255
    assert mask_reasons(mask, MaskGates())[1]["border"] == round(10 / 36, 4)


@pytest.mark.parametrize("scale", [1, 20])
def test_many_pieces_are_fragments_at_any_size(scale: int) -> None:
    """Eight equal blocks are eight pieces, also where a large mask is counted reduced."""
    mask = blank()
    mask[40:60, 10:170] = np.tile(np.repeat([255, 0], 10), 8).astype(np.uint8)
    large = np.repeat(np.repeat(mask, scale, axis=0), scale, axis=1)
    reasons, measures = mask_reasons(large, MaskGates())
    assert reasons == ("mask_fragments",)
    assert measures["fragments"] == 8


def test_crumbs_are_no_fragments() -> None:
    """Pixels strewn about count as nothing beside a product."""
    mask = blank()
    mask[20:80, 50:150] = 255
    mask[5:15:2, ::10] = 255
    assert mask_reasons(mask, MaskGates())[1]["fragments"] == 1


def test_an_unsure_map_is_unstable() -> None:
    """A slope from 0 to 1 is cut elsewhere by each threshold; a step is not."""
    mask = blank()
    mask[25:75, 50:150] = 255
    step = (mask / 255).astype(np.float32)
    slope = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (100, 1))
    assert mask_reasons(mask, MaskGates(), step)[1]["stability"] == 1
    assert mask_reasons(mask, MaskGates(), slope)[0] == ("mask_unstable",)


def photo_of(mask: np.ndarray, product: tuple[int, int, int], background: tuple[int, int, int]) -> Image.Image:
    """Colour a mask, with a camera's noise."""
    colors = np.where(mask[..., None] > 0, product, background)
    return Image.fromarray(
        (colors + np.random.default_rng(2).normal(0, 1.5, colors.shape)).clip(0, 255).astype(np.uint8)
    )


def test_an_outline_that_nobody_can_see_is_faint() -> None:
    """White on white is a guess all around; a shade of grey that shows is not, nor is what the frame cuts off."""
    mask = blank()
    mask[20:, 50:150] = 255
    assert faint_part(photo_of(mask, (250, 250, 250), (252, 251, 252)), mask) > 0.9
    assert faint_part(photo_of(mask, (238, 238, 238), (252, 252, 252)), mask) == 0
    assert faint_part(photo_of(mask, (150, 20, 30), (225, 225, 225)), mask) == 0
    everything = np.full_like(mask, 255)
    assert faint_part(photo_of(everything, (250, 250, 250), (0, 0, 0)), everything) == 0


def test_a_faint_outline_is_doubted_by_how_much_of_it_there_is() -> None:
    """A corner may be lost in the light; more needs a look."""
    mask = blank()
    mask[25:75, 50:150] = 255
    assert mask_reasons(mask, MaskGates(), faint=MaskGates().max_faint)[0] == ()
    reasons, measures = mask_reasons(mask, MaskGates(), faint=0.14)
    assert reasons == ("mask_faint",)
    assert measures["faint"] == 0.14


def test_tidying_closes_pinholes_and_drops_crumbs_but_keeps_a_handle() -> None:
    """A hole of a twentieth of the product is a handle; a few pixels are the model's doubt; soft edges stay."""
    mask = blank()
    mask[20:80, 50:150] = 255
    mask[20:80, 49] = 90
    mask[40:55, 60:80] = 0  # a handle's hole
    mask[60:62, 100:102] = 0  # a pinhole
    mask[5:8, 5:8] = 255  # a crumb
    mask[90:95, 10:30] = 60  # haze
    tidy(mask)
    expected = blank()
    expected[20:80, 50:150] = 255
    expected[20:80, 49] = 90
    expected[40:55, 60:80] = 0
    np.testing.assert_array_equal(mask, expected)
