"""A photographer's backdrop: a neutral sweep from wall to floor, bright but for white products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.inpainting.framing import Framed

_WORKING = 256
# Pixels of the longer side at which the gradient is computed; it is smooth, so enlarging loses nothing.
_LIGHTNESS = 93.0, 85.0
# The backdrop's (CIELAB, 0 to 100), and the one for products that would vanish on it.
_VANISHING = 10.0
# Distance in CIELAB within which a product's pixels are hard to tell from the backdrop: white and light grey, no hue.
_PARTS = 0.25, 0.75
# Vanishing parts of the product between which the backdrop goes from the one to the other.


def backdrop_color(product: Framed) -> tuple[float, float, float]:
    """Choose the backdrop's colour in CIELAB: neutral for every product, as a page of many wants it, and darker for a white one."""
    sample = product.source[product.alpha > 200][:: max(1, product.alpha.size // 200_000)]  # noqa: PLR2004 - surely product
    if not sample.size:
        return _LIGHTNESS[0], 0.0, 0.0
    lab = cv2.cvtColor(sample.reshape(1, -1, 3).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    vanishing = (np.linalg.norm(lab - (_LIGHTNESS[0], 0, 0), axis=1) < _VANISHING).mean()
    return float(np.interp(vanishing, _PARTS, _LIGHTNESS)), 0.0, 0.0


def hex_to_lab(color: str) -> tuple[float, float, float]:
    """Return the CIELAB values of `#rrggbb`."""
    rgb = np.array([[[int(color[i : i + 2], 16) for i in (1, 3, 5)]]], np.float32) / 255
    lightness, a, b = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0]
    return float(lightness), float(a), float(b)


def studio(product: Framed, color: tuple[float, float, float], seed: int) -> NDArray[np.uint8]:
    """Draw the backdrop for a product's frame; height x width x 3. Same seed, same picture."""
    height, width = product.alpha.shape
    factor = min(1.0, _WORKING / max(height, width))
    small = _gradient(product, color, max(2, round(height * factor)), max(2, round(width * factor)))
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    # A level of noise hides the bands that eight bits would show in so smooth a gradient.
    noise = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    picture: NDArray[np.uint8] = np.floor(large * 255 + noise[..., None]).clip(0, 255).astype(np.uint8)
    return picture


def _gradient(product: Framed, color: tuple[float, float, float], height: int, width: int) -> NDArray[np.float32]:
    full_height, full_width = product.alpha.shape
    left, top, right, bottom = product.box
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    center = (left + right) / 2 / full_width, (top + 0.4 * (bottom - top)) / full_height
    pool = np.exp(-(((x - center[0]) / 0.55) ** 2 + ((y - center[1]) / 0.5) ** 2))
    # The floor begins a little above the product's foot, and the sweep has no edge.
    horizon = min(0.92, bottom / full_height - 0.06 * (bottom - top) / full_height)
    floor = 1 / (1 + np.exp(-(y - horizon) / 0.035))
    corner = ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 2
    lab = np.empty((height, width, 3), np.float32)
    lab[..., 0] = (color[0] + 4.5 * pool - 3.0 * floor - 4.0 * corner).clip(0, 100)
    lab[..., 1], lab[..., 2] = color[1], color[2]
    rgb: NDArray[np.float32] = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1).astype(np.float32)
    return rgb
