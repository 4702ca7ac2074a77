"""A soft shadow: an even rim around every product, and the floor's under one that stands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Box = tuple[int, int, int, int]

_WORKING = 384
# Pixels of the longer side at which the shadow is drawn: it is soft, and large pictures would cost seconds.
_RIM = 0.022
# Softness of the rim in parts of the product's mean side; it lies a quarter as far below, as light comes from above.
_RIM_STRENGTH = 0.55
_SQUASH = 0.10
# Height of the lying silhouette, as a part of the standing one.
_FOOT = 0.12
# Lowest part of the product that touches the floor closely enough for the dark core of the shadow.
_SOLE = 0.05
# Lowest part of the product's longer side in which its stance is measured.
_STANCE = 0.6, 0.9
# Stance, in parts of the product's width, of one that does not stand, and of one that surely does: shirts measured 0.56 to 0.64,
# shoes from the side, bottles and books 0.88 to 1. Between them the floor's shadow fades, so that a wrong guess stays a faint one.


def cast_shadow(
    background: NDArray[np.uint8], alpha: NDArray[np.uint8], box: Box, darkness: float
) -> NDArray[np.uint8]:
    """Darken a background (height x width x 3) under a product; `darkness` 0 to 1 is the part of light taken at the darkest place."""
    if darkness <= 0:
        return background
    height, width = alpha.shape
    factor = min(1.0, _WORKING / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    left, top, right, bottom = (round(side * factor) for side in box)
    lying = _lying(small, top, bottom, right - left)
    shade = 1 - (1 - _rim(small, math.sqrt((right - left) * (bottom - top)))) * (1 - footing(alpha, box) * lying)
    light = 1 - darkness * cv2.resize(shade, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(background * light[..., None]).astype(np.uint8)


def footing(alpha: NDArray[np.uint8], box: Box) -> float:
    """Tell how surely a product stands, 0 to 1, by how wide it is where it would touch the floor.

    A shirt laid out and seen from above narrows towards its hem; a bottle, a book or a shoe does not narrow towards its sole.
    """
    left, top, right, bottom = box
    sole = max(1, round(_SOLE * max(right - left, bottom - top)))
    columns = np.flatnonzero((alpha[max(top, bottom - sole) : bottom, left:right] > 127).any(axis=0))  # noqa: PLR2004 - half
    if not columns.size:
        return 0.0
    stance = float(columns[-1] + 1 - columns[0]) / (right - left)
    return float(np.interp(stance, _STANCE, (0, 1)))


def _rim(product: Floats, side: float) -> Floats:
    """Shade the neighbourhood of the silhouette alike on all sides, a little more below."""
    sigma = max(1.0, _RIM * side)
    lower = np.array([[1, 0, 0], [0, 1, sigma / 4]])
    lowered = cv2.warpAffine(product, lower, (product.shape[1], product.shape[0]))
    return cv2.GaussianBlur(lowered, (0, 0), sigma).astype(np.float32) * np.float32(_RIM_STRENGTH)


def _lying(product: Floats, top: int, bottom: int, width: int) -> Floats:
    """Lay the silhouette down on the floor."""
    tall = max(1, bottom - top)
    rows = np.arange(product.shape[0], dtype=np.float32)[:, None]
    columns = np.broadcast_to(np.arange(product.shape[1], dtype=np.float32)[None, :], product.shape)
    shade = np.zeros_like(product)
    # The wide, faint part is the whole silhouette; the narrow, dark part is the foot alone, where light cannot get in.
    for part, squash, blur, strength in ((1.0, _SQUASH, 0.055, 0.65), (_FOOT, _FOOT, 0.018, 0.75)):
        figure = product.copy()
        figure[: max(0, round(bottom - part * tall))] = 0
        middle = bottom - squash * tall * 0.35
        from_rows = bottom - tall * part * 0.5 + (rows - middle) / squash * (part if part < 1 else 1.0)
        lying = cv2.remap(
            figure,
            np.ascontiguousarray(columns),
            np.ascontiguousarray(np.broadcast_to(from_rows, product.shape), dtype=np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
        )
        sigma = max(1.0, blur * width)
        soft = cv2.GaussianBlur(lying, (0, 0), sigmaX=sigma, sigmaY=max(0.8, sigma * 0.45))
        shade = shade + strength * soft * (1 - shade)
    return shade.clip(0, 1)
