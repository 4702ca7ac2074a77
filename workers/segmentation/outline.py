"""How well a mask's outline can be seen in the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from PIL import Image

from workers.segmentation.gates import INSIDE
from workers.segmentation.refine import FIT_PIXELS, Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_NOTICEABLE = 2.3
# The just noticeable difference of CIELAB (Mahy, Van Eycken, Oosterlinck 1994): less than this between two sides is no edge.
_REACH = 3
# Pixels of the reduced photo whose colours are averaged on either side, without the one next to the outline, where they mix.


def faint_part(rgb: Image.Image, mask: NDArray[np.uint8]) -> float:
    """Return the part (0 to 1) of a mask's outline whose two sides have the same colour to the eye: there the outline was guessed.

    `mask` is height x width of the photo, 0 to 255. What the frame cuts off is no outline.
    """
    box = Box.around(mask)
    if box is None:
        return 0.0
    size = box.reduced(FIT_PIXELS)
    small = np.asarray(rgb.resize(size, Image.Resampling.BOX, box=box.window), np.float32) / np.float32(255)
    lab = cast("Floats", cv2.cvtColor(small, cv2.COLOR_RGB2LAB))
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BOX, box=box.window)) >= INSIDE
    product = inside.view(np.uint8)
    square = np.ones((3, 3), np.uint8)
    # Constant borders as OpenCV sets them: the frame's edge is no edge of the product.
    inner, outer = cv2.erode(product, square) > 0, cv2.dilate(product, square) == 0
    (own, own_share), (other, other_share) = (_near(lab, side) for side in (inner, outer))
    edge = inside & ~inner & (own_share > 0) & (other_share > 0)
    difference = np.linalg.norm(own[edge] - other[edge], axis=1)
    return float((difference < _NOTICEABLE).sum() / max(1, difference.size))


def _near(colors: Floats, where: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Average the colours of the pixels near by that count; returns them, height x width x 3, and which part of the pixels counted."""
    weight = where.astype(np.float32)
    window = (2 * _REACH + 1, 2 * _REACH + 1)
    share = cv2.boxFilter(weight, -1, window, borderType=cv2.BORDER_REPLICATE)
    total = cv2.boxFilter(colors * weight[..., None], -1, window, borderType=cv2.BORDER_REPLICATE)
    # Running sums leave a trace of rounding where nothing counts.
    share = np.where(share > 1e-3, share, 0)  # noqa: PLR2004 - less than one pixel of the window
    return cast("Floats", total / np.maximum(share, 1e-3)[..., None]), cast("Floats", share)
