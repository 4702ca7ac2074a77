"""Composition: product pixels from the source, background from the model, a feather of a few pixels between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.inpainting.framing import Framed

_HALF = 127
_HARD = 0.2
# A mask whose edge has fewer soft pixels than this part is a hard one, and gets a ramp of the feather's width.


@dataclass(frozen=True, slots=True)
class Composition:
    """A product over a background."""

    rgb: NDArray[np.uint8]
    """Height x width x 3."""
    alpha: NDArray[np.uint8]
    """Height x width: the product's weight, 0 to 255."""
    preserved_pixels: int
    """Pixels of the mask eroded by the feather."""
    preserved_max_difference: int
    """Largest difference there between source and result, in levels; 0 is the promise."""


def compose(product: Framed, background: NDArray[np.uint8] | None, feather: float) -> Composition:
    """Set a product on a background (height x width x 3), or on nothing.

    Inside the mask eroded by `feather` pixels the weight is 255 and the source's pixels are copied, not computed.
    """
    core = eroded(product.alpha, feather)
    weight = weights(product.alpha, core, feather)
    colors = np.where(core[..., None], product.source, product.clean)
    if background is None:
        result = colors
    else:
        result = background.copy()
        result[weight == 255] = colors[weight == 255]  # noqa: PLR2004 - full weight
        band = (weight > 0) & (weight < 255)  # noqa: PLR2004 - as above
        share = weight[band, None].astype(np.float32) / 255
        mixed = colors[band] * share + background[band] * (1 - share)
        result[band] = np.rint(mixed).astype(np.uint8)
    difference = np.abs(result[core].astype(np.int16) - product.source[core].astype(np.int16))
    return Composition(result, weight, int(core.sum()), int(difference.max(initial=0)))


def eroded(alpha: NDArray[np.uint8], feather: float) -> NDArray[np.bool_]:
    """Return where the mask (alpha over one half) reaches at least `feather` pixels in every direction; the frame's edge does not count."""
    return _depth(alpha) > feather


def weights(alpha: NDArray[np.uint8], core: NDArray[np.bool_], feather: float) -> NDArray[np.uint8]:
    """Return the product's weight, 0 to 255: 255 in the core, the soft mask's own alpha at its edge, a ramp for a hard mask."""
    depth = _depth(alpha)
    edge = (depth > 0) & (depth <= 1.5)  # noqa: PLR2004 - the outermost ring of pixels, diagonals included
    soft = int(np.count_nonzero(edge & (alpha < 250))) / max(1, int(np.count_nonzero(edge)))  # noqa: PLR2004 - all but full
    if soft >= _HARD or feather == 0:
        weight = alpha.copy()
    else:
        weight = np.minimum(alpha, np.rint(255 * depth / (feather + 1)).clip(0, 255)).astype(np.uint8)
    weight[core] = 255
    return weight


def _depth(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    inside = (alpha > _HALF).astype(np.uint8)
    # OpenCV takes a mask without any outside for infinitely deep, as it should be: the frame cuts the product off.
    if inside.all():
        return np.full(alpha.shape, np.float32(1e6))
    return cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float32)
