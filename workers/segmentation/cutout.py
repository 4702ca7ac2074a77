"""The product cut out: colours freed of the background they were mixed with, and the two files of the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from PIL import Image

from shared.pictures import encode_png
from workers.segmentation.refine import FIT_PIXELS, Box, cut_rows, to_bytes
from workers.stage import Artifact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_REACH = 0.008
# How far, in parts of the product's mean side, pure colours are looked for around a soft edge; then four times as far.


def artifacts(rgb: Image.Image, alpha: NDArray[np.uint8], *, mixed: bool) -> Mapping[str, Artifact]:
    """Write the stage's files: `cutout` (RGBA) and `mask` (L), both PNG of the photo's full frame.

    `alpha` is height x width, 0 to 255. With `mixed`, the photo's soft pixels still hold background colour, which is taken out. Pixels
    of alpha 255 are the photo's own; those of alpha 0 are black. The mask comes last: that it exists says that the stage is done.
    """
    colors = clean_colors(rgb, alpha) if mixed else np.array(rgb)
    colors[alpha == 0] = 0  # compresses better, and shows nobody the background
    cut = Image.fromarray(colors)
    matte = Image.fromarray(alpha)
    cut.putalpha(matte)
    return {
        "cutout": Artifact(encode_png(cut), "image/png", "png"),
        "mask": Artifact(encode_png(matte), "image/png", "png"),
    }


def clean_colors(rgb: Image.Image, alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Estimate the product's own colour under a soft edge; height x width x 3.

    With the product's and the background's colours guessed from the pure pixels near by, the colour is moved by what the mixture
    of the two guesses leaves unexplained. Only pixels of alpha 1 to 254 change.
    """
    out = np.array(rgb)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not rows.size:
        return out
    box = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    size = box.reduced(FIT_PIXELS)
    window = (box.left, box.top, box.right, box.bottom)
    small = np.asarray(rgb.resize(size, Image.Resampling.BOX, box=window), np.float32) / 255
    matte = Image.fromarray(alpha).resize(size, Image.Resampling.BOX, box=window)
    weight = np.asarray(matte, np.float32) / 255
    guesses = np.dstack([_pure(small, weight), _pure(small, 1 - weight)])
    for top, bottom in box.strips():
        strip = np.s_[box.top + top : box.top + bottom, box.left : box.right]
        soft = (alpha[strip] > 0) & (alpha[strip] < 255)  # noqa: PLR2004 - opaque
        if soft.any():
            near = cut_rows(guesses, box, top, bottom)[soft]
            a = (alpha[strip][soft].astype(np.float32) / 255)[:, None]
            product, background = near[:, :3], near[:, 3:]
            seen = out[strip][soft].astype(np.float32) / 255
            unexplained = seen - a * product - (1 - a) * background
            out[strip][soft] = to_bytes(product + a * unexplained)
    return out


def _pure(colors: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spread the colours of pixels of weight near 1 over the others; height x width x 3, 0 to 1."""
    weight = (weight > 0.97).astype(np.float32) + np.float32(1e-6)  # noqa: PLR2004 - pure to the eye
    side = max(1.0, _REACH * float(np.sqrt(weight.size)))
    out = np.zeros_like(colors)
    # Far first: where a nearer guess has any weight it takes over.
    for reach in (16, 4, 1):
        radius = 2 * round(side * reach) + 1
        share = cv2.boxFilter(weight, -1, (radius, radius), borderType=cv2.BORDER_REPLICATE)[..., None]
        total = cv2.boxFilter(colors * weight[..., None], -1, (radius, radius), borderType=cv2.BORDER_REPLICATE)
        trust = np.clip(share * 50, 0, 1)
        out = out * (1 - trust) + total / share * trust if reach != 16 else total / share  # noqa: PLR2004 - the first
    return cast("NDArray[np.float32]", out)
