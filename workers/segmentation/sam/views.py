"""What the encoder is shown of a photo: the whole, and where the recipe asks for it overlapping crops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from segment_anything.utils.amg import generate_crop_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERLAP = 512 / 1500
"""Of neighbouring crops, as a part of the photo's shorter side; segment-anything's own default."""


@dataclass(frozen=True, slots=True)
class View:
    """A part of a photo as the encoder sees it."""

    pixels: NDArray[np.uint8]
    """height x width x 3; the longer side is the encoder's."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels of the frame."""
    frame: tuple[int, int]
    """Width and height of the whole photo, in the pixels that masks are measured in: its own, or fewer for a photo larger than the encoder's input."""


def cut(rgb: Image.Image, side: int, layers: int) -> list[View]:
    """Show a photo to an encoder of `side` pixels: the whole first, then 4 crops, then 16, for `layers` further layers."""
    scale = min(1.0, side / max(rgb.size))
    frame = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
    boxes, _ = generate_crop_boxes(frame[::-1], layers, OVERLAP)
    across, down = rgb.width / frame[0], rgb.height / frame[1]
    views = []
    for left, top, right, bottom in boxes:
        # Crops come from the photo itself: their detail is why they are looked at.
        part = rgb.crop((round(left * across), round(top * down), round(right * across), round(bottom * down)))
        pixels = part.resize(fitted(right - left, bottom - top, side), Image.Resampling.BILINEAR, reducing_gap=3)
        views.append(View(np.asarray(pixels), (left, top, right, bottom), frame))
    return views


def fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the width and the height at which the longer side is `side`, rounded as segment-anything rounds them."""
    scale = side / max(width, height)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
