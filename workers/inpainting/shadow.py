"""A soft contact shadow: the product's silhouette laid down on the floor it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORKING = 384
# Pixels of the longer side at which the shadow is drawn: it is soft, and large pictures would cost seconds.
_SQUASH = 0.10
# Height of the lying silhouette, as a part of the standing one.
_FOOT = 0.12
# Lowest part of the product that touches the floor closely enough for the dark core of the shadow.


def cast_shadow(
    background: NDArray[np.uint8], alpha: NDArray[np.uint8], box: tuple[int, int, int, int], darkness: float
) -> NDArray[np.uint8]:
    """Darken a background (height x width x 3) under a product; `darkness` 0 to 1 is the part of light taken at the darkest place."""
    if darkness <= 0:
        return background
    height, width = alpha.shape
    factor = min(1.0, _WORKING / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    left, top, right, bottom = (round(side * factor) for side in box)
    shade = _lying(small, top, bottom, right - left)
    light = 1 - darkness * cv2.resize(shade, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(background * light[..., None]).astype(np.uint8)


def _lying(product: NDArray[np.float32], top: int, bottom: int, width: int) -> NDArray[np.float32]:
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
