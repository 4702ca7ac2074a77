"""The colour a person would name a product by."""
# ruff: noqa: PLR2004 - the borders between names are a table in the form of code

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = 40_000
"""Pixels of the frame looked at, about; more changes no name and costs time."""
OPAQUE = 200
"""Mask level (0-255) above which a pixel is the product's own, unmixed with what was behind."""
DOMINANT = 0.5
"""Smallest part of the product that one colour must cover to name it; below it the product is multicoloured."""
_CHROMA_OF_GREY = 11.0
"""CIELAB chroma below which a pixel has no hue: white cloth under a blue sky or a warm lamp stays under it."""
_HUE_BINS = 36
_HUE_REACH = 25.0
"""Degrees on each side of the commonest hue that shading and light move the same paint."""
_GREY_SPREAD = 35.0
"""Lightness between the quartiles of one shaded grey thing; more means black with white, which are then told apart."""


@dataclass(frozen=True, slots=True)
class Color:
    """The named colour and how far it can be trusted."""

    name: str
    """One of `workers.captioning.sentences.COLORS`."""
    share: float
    """Part of the product's pixels that are of the largest colour, 0-1."""
    hex: str
    """The largest colour on its lit side, `#rrggbb`."""


def dominant_color(rgb: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Color | None:
    """Name the colour of the product: `rgb` is (H, W, 3) sRGB, `mask` (H, W), both 0-255. None when the mask is empty.

    Pixels are parted into greys and hues, so that folds and highlights, which change lightness most, stay with their colour;
    the largest part is named by its lit side.
    """
    step = max(1, int((mask.size / SAMPLES) ** 0.5))
    few, their_mask = rgb[::step, ::step], mask[::step, ::step]
    if not (their_mask > OPAQUE).any():
        few, their_mask = rgb, mask  # too thin a thing to be met by a coarse grid
    pixels = few[their_mask > OPAQUE]
    if not len(pixels):
        pixels = few[their_mask > 0]  # glass or gauze: nothing in it is opaque
    if not len(pixels):
        return None
    lab = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    parts = [*_greys(lab), *_hues(lab)]
    largest = max(parts, key=len)
    share = len(largest) / len(lab)
    typical = _lit(largest)
    name = color_name(*(float(value) for value in typical)) if share >= DOMINANT else "multicoloured"
    return Color(name, round(share, 3), _hex(typical))


def _lit(lab: NDArray[Any]) -> NDArray[Any]:
    """Return the median of the pixels between half-lit and highlight: people name a thing by its lit side."""
    low, high = np.percentile(lab[:, 0], (50, 90))
    median: NDArray[Any] = np.median(lab[(lab[:, 0] >= low) & (lab[:, 0] <= high)], axis=0)
    return median


def _greys(lab: NDArray[Any]) -> list[NDArray[Any]]:
    grey = lab[np.hypot(lab[:, 1], lab[:, 2]) < _CHROMA_OF_GREY]
    if not len(grey):
        return []
    low, high = np.percentile(grey[:, 0], (25, 75))
    if high - low < _GREY_SPREAD:
        return [grey]
    middle = (low + high) / 2
    return [grey[grey[:, 0] < middle], grey[grey[:, 0] >= middle]]


def _hues(lab: NDArray[Any]) -> list[NDArray[Any]]:
    """Part the coloured pixels around their commonest hues, largest first."""
    left = lab[np.hypot(lab[:, 1], lab[:, 2]) >= _CHROMA_OF_GREY]
    parts = []
    while len(left) > DOMINANT * len(lab):  # a smaller rest cannot hold a dominant colour
        hue = np.degrees(np.arctan2(left[:, 2], left[:, 1])) % 360
        counts, edges = np.histogram(hue, _HUE_BINS, (0, 360))
        around = counts + np.roll(counts, 1) + np.roll(counts, -1)
        peak = edges[around.argmax()] + 180 / _HUE_BINS
        near = np.abs((hue - peak + 180) % 360 - 180) <= _HUE_REACH
        parts.append(left[near])
        left = left[~near]
    return [*parts, left] if len(left) else parts


def _hex(lab: NDArray[Any]) -> str:
    rgb = cv2.cvtColor(lab.astype(np.float32).reshape(1, 1, 3), cv2.COLOR_LAB2RGB)[0, 0]
    return "#" + "".join(f"{round(float(np.clip(level, 0, 1)) * 255):02x}" for level in rgb)


def color_name(lightness: float, a: float, b: float) -> str:
    """Name one CIELAB colour (lightness 0-100). The borders were set by eye on the CSS colours of those names."""
    chroma, hue = float(np.hypot(a, b)), float(np.degrees(np.arctan2(b, a))) % 360
    if chroma < _CHROMA_OF_GREY:
        return "white" if lightness > 82 else "black" if lightness < 25 else "grey"
    namer = next(namer for end, namer in _WHEEL if hue < end)
    return namer(lightness, chroma, hue)


def _reddish(lightness: float, chroma: float, hue: float) -> str:
    if lightness < 33:
        return "burgundy"
    if 15 <= hue < 345 and chroma > 45 and lightness < 63:
        return "red"
    return "brown" if 25 <= hue < 345 and chroma < 35 and lightness < 62 else "pink"


def _warm(lightness: float, chroma: float, hue: float) -> str:
    if hue < 52 and chroma > 65 and lightness < 58:
        return "red"
    if lightness > 62 and chroma < 36:
        return "beige"
    if hue < 80:
        return "orange" if lightness > 57 and chroma > 45 else "beige" if lightness > 68 else "brown"
    if lightness > 66:
        return "yellow"
    return "brown" if hue < 90 else "olive"


def _greenish(lightness: float, chroma: float, hue: float) -> str:
    del lightness, chroma, hue
    return "green"


def _cyanish(lightness: float, chroma: float, hue: float) -> str:
    del chroma, hue
    return "turquoise" if lightness >= 58 else "teal"


def _bluish(lightness: float, chroma: float, hue: float) -> str:
    if lightness > 66 or (hue < 265 and lightness > 60):
        return "light blue"
    return "navy" if lightness < 20 or (lightness < 33 and chroma < 50) else "blue"


def _purplish(lightness: float, chroma: float, hue: float) -> str:
    del hue
    return "pink" if lightness > 58 and chroma > 60 else "purple"


_WHEEL = (  # degrees of CIELAB hue up to which, and who names the colours there
    (42, _reddish),
    (112, _warm),
    (170, _greenish),
    (215, _cyanish),
    (310, _bluish),
    (345, _purplish),
    (361, _reddish),
)
