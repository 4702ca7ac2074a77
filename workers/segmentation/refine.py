"""A matte at the photo's full resolution out of a model's coarse map: edges that follow the picture.

A guided filter (He, Sun, Tang 2013): near each edge alpha is a linear function of colour, fitted to the coarse map on a reduced picture
and applied at full resolution. Before it, the colours of the product and of its surroundings have a say in the map. Memory beyond
the matte itself is bounded for any photo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from PIL import Image

from workers.segmentation.gates import CRUMB, INSIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

FIT_PIXELS = 512 * 512
"""The fit is made on a crop of at most this many pixels: finer fits cost more and measured no better."""
STRIP_PIXELS = 1_000_000
"""Full-resolution work goes in strips of about this many pixels, 16 MB of floats."""
HOLE = 0.003
"""A hole smaller than this part of the product is the model's doubt, not a mug's handle."""

_ROOM = 0.05
# Margin around the product in parts of its mean side.
_RADII = 0.02, 0.01
# Radii of the two fits in parts of the photo's mean side: the first spans the coarse map's error (five of its 320 pixels), the second
# sharpens what the first found. Larger ones gained on some products and lost on white on white.
_SMOOTHNESS = 1e-4
# Variance of colour (0 to 1) under which the picture shows no edge to follow: JPEG noise stays below.
_EXPLAINED = 0.7, 0.95
# Share of the map's variance that colour must explain for the fit to count not at all, and fully.
_DECIDED = 0.4, 0.6
# Between the fits nearly every pixel is decided: a haze that the second fit is given comes out as smoke around the product.
_LEVELS = 0.2, 0.8
# The filter leaves a haze of this much on either side of an edge.
_SHADES = 8
# Steps per channel in which colours are counted: as coarse as a surface's own shading.
_WEIGHT = 1 / 3
# Of what the colours say, because neighbouring pixels say the same thing again; 0.2 to 0.5 measured alike.
_UNSEEN = 1e-4
# A colour as rare as this among the sure pixels says nothing.
_ODDS = 9.0
# Largest odds that the map, and the colours, can claim: a sure map and clear colours that contradict it leave the matter open.


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a photo, in pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels."""
        return self.bottom - self.top

    @classmethod
    def around(cls, alpha: Bytes) -> Box | None:
        """Find the part of a matte (height x width) that holds all that is not 0, with room for pure background; None without any."""
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        if not rows.size:
            return None
        height, width = alpha.shape
        room = 8 + int(_ROOM * math.sqrt(len(rows) * len(columns)))
        left, top, right, bottom = (int(side) for side in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        return cls(max(0, left - room), max(0, top - room), min(width, right + room), min(height, bottom + room))

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow takes them."""
        return self.left, self.top, self.right, self.bottom

    def reduced(self, pixels: int) -> tuple[int, int]:
        """Return the width and height of this part shrunk, if need be, to at most about `pixels` pixels."""
        scale = min(1.0, math.sqrt(pixels / (self.width * self.height)))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def strips(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last-plus-one row of each strip, counted from the top of this part."""
        rows = max(1, STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            yield top, min(top + rows, self.height)


def upsample(saliency: Floats, size: tuple[int, int]) -> Bytes:
    """Enlarge a coarse map (any size, 0 to 1) to a matte of `size` (width, height), 0 to 255, without looking at the picture."""
    return np.asarray(Image.fromarray(to_bytes(saliency)).resize(size, Image.Resampling.BICUBIC))


def refine(rgb: Image.Image, saliency: Floats) -> Bytes:
    """Make a matte of the photo's size, 0 to 255, whose edges follow the picture.

    `saliency` is the model's map of the whole photo, of any size, 0 to 1.
    """
    width, height = rgb.size
    alpha = np.zeros((height, width), np.uint8)
    box = _product_box(saliency, rgb.size)
    if box is None:
        return alpha
    small = box.reduced(FIT_PIXELS)
    # Radii in pixels of the reduced crop, for which the photo's own scale decides and not the product's.
    side = math.sqrt(width * height) * math.sqrt(small[0] * small[1] / (box.width * box.height))
    coarse_radius, fine_radius = (max(1, round(part * side)) for part in _RADII)
    guide = _crop(rgb, box, small)
    coarse = _crop_map(saliency, box, rgb.size, small)
    lower, upper = _sure(coarse, coarse_radius)
    fit = _fit(guide, _weighed(coarse, guide, lower, upper), coarse_radius)
    first = cast("Floats", np.clip(_levels(_apply(fit, guide), *_DECIDED), lower, upper))
    fit = _fit(guide, first, fine_radius)
    known = cast("Floats", np.dstack([fit, lower, upper]).astype(np.float32, copy=False))
    for top, bottom in box.strips():
        rows = cut_rows(known, box, top, bottom)
        window = (box.left, box.top + top, box.right, box.top + bottom)
        colors = cast("Floats", np.asarray(rgb.crop(window), np.float32) / np.float32(255))
        part = np.clip(_levels(_apply(rows[..., :4], colors), *_LEVELS), rows[..., 4], rows[..., 5])
        alpha[window[1] : window[3], box.left : box.right] = to_bytes(part)
    tidy(alpha[box.top : box.bottom, box.left : box.right])
    return alpha


def tidy(alpha: Bytes) -> None:
    """Drop crumbs and close small holes of a matte (height x width, 0 to 255), in place."""
    height, width = alpha.shape
    size = Box(0, 0, width, height).reduced(STRIP_PIXELS)
    small = alpha if size == (width, height) else cast("Bytes", cv2.resize(alpha, size, interpolation=cv2.INTER_AREA))
    inside = int((small >= INSIDE).sum())
    crumbs = _crumbs(small)
    holes = _small_pieces(small < INSIDE, HOLE * inside)
    for wrong, value in ((crumbs, 0), (holes, 255)):
        if wrong.any():
            full = wrong.view(np.uint8)
            if small is not alpha:
                full = cast("Bytes", cv2.resize(full, (width, height), interpolation=cv2.INTER_NEAREST))
            alpha[full.view(np.bool_)] = value


def cut_rows(small: Floats, box: Box, top: int, bottom: int) -> Floats:
    """Enlarge rows `top` to `bottom` of a part's reduced map (height x width x channels) to the part's full width.

    The same numbers come out however the part is cut into strips.
    """
    height, width = small.shape[:2]
    across, down = width / box.width, height / box.height
    # Pixel centres are matched; warpAffine takes the map from output to input.
    matrix = np.array([[across, 0, across / 2 - 0.5], [0, down, (top + 0.5) * down - 0.5]])
    # OpenCV warps at most four channels at once.
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    layers = [
        cv2.warpAffine(
            np.ascontiguousarray(small[..., first : first + 3]),
            matrix,
            (box.width, bottom - top),
            flags=flags,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for first in range(0, small.shape[2], 3)
    ]
    return cast("Floats", np.dstack(layers))


def to_bytes(values: Floats) -> Bytes:
    """Turn 0 to 1 into 0 to 255, rounded and clipped."""
    return cast("Bytes", np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8))


def _product_box(saliency: Floats, size: tuple[int, int]) -> Box | None:
    """Find the part of a photo of `size` that can hold the product, with a margin for the filter's reach."""
    rows, columns = (np.flatnonzero((saliency > 0.1).any(axis=axis)) for axis in (1, 0))  # noqa: PLR2004 - barely salient
    if not rows.size:
        return None
    height, width = saliency.shape
    margin = 2 * _RADII[0]
    left, right = ((columns[0] / width) - margin) * size[0], ((columns[-1] + 1) / width + margin) * size[0]
    top, bottom = ((rows[0] / height) - margin) * size[1], ((rows[-1] + 1) / height + margin) * size[1]
    return Box(max(0, int(left)), max(0, int(top)), min(size[0], math.ceil(right)), min(size[1], math.ceil(bottom)))


def _crop(rgb: Image.Image, box: Box, size: tuple[int, int]) -> Floats:
    """Cut a part out of a photo and shrink it to `size`; 0 to 1."""
    small = rgb.resize(size, Image.Resampling.BOX, box=box.window)
    return cast("Floats", np.asarray(small, np.float32) / np.float32(255))


def _crop_map(values: Floats, box: Box, photo: tuple[int, int], size: tuple[int, int]) -> Floats:
    """Cut the same part out of a coarse map of the whole photo, at `size`; 0 to 1."""
    height, width = values.shape
    across, down = width / photo[0], height / photo[1]
    window = (box.left * across, box.top * down, box.right * across, box.bottom * down)
    part = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC, box=window)
    return np.clip(np.asarray(part, np.float32), 0, 1)


def _sure(coarse: Floats, radius: int) -> tuple[Floats, Floats]:
    """Bound the matte from below and above: away from the coarse edge the model is believed, whatever the colours say."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # Constant borders as OpenCV sets them: the frame's edge is no edge of the product.
    product = (coarse > 0.5).astype(np.uint8)  # noqa: PLR2004 - the model's own cut
    return cv2.erode(product, kernel).astype(np.float32), cv2.dilate(product, kernel).astype(np.float32)


def _weighed(coarse: Floats, guide: Floats, lower: Floats, upper: Floats) -> Floats:
    """Weigh the map against the colours: Bayes' rule, with how often each colour is seen in the sure product and in the sure background."""
    shades = np.minimum(guide * _SHADES, _SHADES - 1).astype(np.int32)
    shade = (shades[..., 0] * _SHADES + shades[..., 1]) * _SHADES + shades[..., 2]
    inside, outside = (_frequencies(shade[sure]) for sure in (lower > 0, upper == 0))
    # The more colours both share, as a white product on white does, the less they say.
    say = _WEIGHT * (1 - float(np.minimum(inside, outside).sum()))
    odds = np.clip(((inside + _UNSEEN) / (outside + _UNSEEN)) ** say, 1 / _ODDS, _ODDS).astype(np.float32)
    least = np.float32(1 / (1 + _ODDS))
    prior = np.clip(coarse, least, 1 - least)
    product = prior * odds[shade]
    return cast("Floats", np.clip(product / (product + 1 - prior), lower, upper))


def _frequencies(shade: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return how large a part of some pixels has each shade; zeros of no pixels."""
    return np.bincount(shade, minlength=_SHADES**3) / max(1, shade.size)


def _mean(values: Floats, radius: int) -> Floats:
    side = 2 * radius + 1
    return cast("Floats", cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REPLICATE))


def _fit(guide: Floats, alpha: Floats, radius: int) -> Floats:
    """Fit alpha = a · colour + b around each pixel; returns height x width x 4 (a for red, green, blue; b)."""
    center = _mean(guide, radius)
    level = _mean(alpha, radius)
    with_alpha = _mean(guide * alpha[..., None], radius) - center * level[..., None]
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = [_mean(guide[..., i] * guide[..., j], radius) - center[..., i] * center[..., j] for i, j in pairs]
    rr, rg, rb, gg, gb, bb = products
    rr, gg, bb = rr + _SMOOTHNESS, gg + _SMOOTHNESS, bb + _SMOOTHNESS
    # The inverse of the symmetric 3x3 covariance by cofactors.
    c00, c01, c02 = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    scale = 1 / (rr * c00 + rg * c01 + rb * c02)
    red, green, blue = (with_alpha[..., channel] for channel in range(3))
    slope = np.dstack(
        [
            (c00 * red + c01 * green + c02 * blue) * scale,
            (c01 * red + c11 * green + c12 * blue) * scale,
            (c02 * red + c12 * green + c22 * blue) * scale,
        ]
    )
    offset = level - np.einsum("ijk,ijk->ij", slope, center)
    return _trusted(_mean(np.dstack([slope, offset]), radius), guide, alpha, radius)


def _trusted(fit: Floats, guide: Floats, alpha: Floats, radius: int) -> Floats:
    """Go back to the map itself where colour does not explain it, as with a white product on white."""
    level = _mean(alpha, radius)
    variance = _mean(alpha * alpha, radius) - level * level
    missed = _mean(np.square(_apply(fit, guide) - alpha), radius)
    low, high = _EXPLAINED
    trust = np.clip((1 - missed / (variance + 1e-4) - low) / (high - low), 0, 1)
    trusted = cast("Floats", fit * trust[..., None])
    trusted[..., 3] += (1 - trust) * alpha
    return trusted


def _apply(fit: Floats, colors: Floats) -> Floats:
    return cast("Floats", np.einsum("ijk,ijk->ij", fit[..., :3], colors) + fit[..., 3])


def _levels(alpha: Floats, low: float, high: float) -> Floats:
    return (alpha - low) / (high - low)


def _crumbs(alpha: Bytes) -> NDArray[np.bool_]:
    """Mark the pieces, haze included, that are too small beside the largest."""
    count, labels = cv2.connectedComponents((alpha > 0).astype(np.uint8), connectivity=8)
    areas = np.bincount(labels[alpha >= INSIDE], minlength=count)
    areas[0] = 0
    wrong = areas < max(1, CRUMB * areas.max())
    wrong[0] = False
    return cast("NDArray[np.bool_]", wrong[labels])


def _small_pieces(where: NDArray[np.bool_], area: float) -> NDArray[np.bool_]:
    """Mark the connected pieces of `where` that are smaller than `area` pixels and do not touch the border."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(where.view(np.uint8), connectivity=4)
    height, width = where.shape
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    wrong = (stats[:, cv2.CC_STAT_AREA] < area) & (left > 0) & (top > 0) & (right < width) & (bottom < height)
    wrong[0] = False
    return cast("NDArray[np.bool_]", wrong[labels])
