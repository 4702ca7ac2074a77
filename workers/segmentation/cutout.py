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

    Floats = NDArray[np.float32]

_REACH = 0.008
# How far, in parts of the product's mean side, pure colours are first looked for; then 4 and 16 times as far.


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
        "cutout": Artifact(encode_png(cut), "image/png"),
        "mask": Artifact(encode_png(matte), "image/png"),
    }


def clean_colors(rgb: Image.Image, alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Estimate the product's own colour under a soft edge; height x width x 3.

    With the product's and the background's colours guessed from the pure pixels near by, the colour is moved by what the mixture
    of the two guesses leaves unexplained. Only pixels of alpha 1 to 254 change.
    """
    out = np.array(rgb)
    box = Box.around(alpha)
    if box is None:
        return out
    size = box.reduced(FIT_PIXELS)
    small = _unit(rgb.resize(size, Image.Resampling.BOX, box=box.window))
    weight = _unit(Image.fromarray(alpha).resize(size, Image.Resampling.BOX, box=box.window))
    guesses = np.dstack([_pure(small, weight), _pure(small, 1 - weight)])
    for top, bottom in box.strips():
        strip = np.s_[box.top + top : box.top + bottom, box.left : box.right]
        soft = (alpha[strip] > 0) & (alpha[strip] < 255)  # noqa: PLR2004 - opaque
        if soft.any():
            near = cut_rows(guesses, box, top, bottom)[soft]
            a = (alpha[strip][soft].astype(np.float32) / np.float32(255))[:, None]
            product, background = near[:, :3], near[:, 3:]
            seen = out[strip][soft].astype(np.float32) / np.float32(255)
            unexplained = seen - a * product - (1 - a) * background
            out[strip][soft] = to_bytes(cast("Floats", product + a * unexplained))
    return out


def _unit(image: Image.Image) -> Floats:
    return cast("Floats", np.asarray(image, np.float32) / np.float32(255))


def _pure(colors: Floats, weight: Floats) -> Floats:
    """Spread the colours of pixels of weight near 1 over the others; height x width x 3, 0 to 1."""
    pure = cast("Floats", (weight > 0.97).astype(np.float32) + np.float32(1e-6))  # noqa: PLR2004 - pure to the eye
    side = max(1.0, _REACH * float(np.sqrt(weight.size)))
    far, middle, near = (_spread(colors, pure, 2 * round(side * reach) + 1) for reach in (16, 4, 1))
    out = far[0]
    # Where a nearer guess has any weight it takes over.
    for guess, share in (middle, near):
        trust = np.clip(share * 50, 0, 1)
        out = out + trust * (guess - out)
    return out


def _spread(colors: Floats, weight: Floats, side: int) -> tuple[Floats, Floats]:
    """Return the weighted mean colour in a square of `side` pixels, and the mean weight there."""
    total = cv2.boxFilter(colors * weight[..., None], -1, (side, side), borderType=cv2.BORDER_REPLICATE)
    share = cv2.boxFilter(weight, -1, (side, side), borderType=cv2.BORDER_REPLICATE)[..., None]
    return cast("Floats", total / share), cast("Floats", share)
