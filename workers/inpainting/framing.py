"""The product in its frame: the photo's own, or a marketplace's."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from shared.errors import NoProductError, UnreadablePictureError
from shared.pictures import decode
from shared.pictures.colors import DAMAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shared.recipe import Picture
    from workers.stage import Work

MAX_SCALE = 2.0
"""Largest enlargement: beyond it a small product would only look soft."""
_VISIBLE = 8
# Alpha, of 255, from which a pixel counts for the product's box.


@dataclass(frozen=True, slots=True)
class Framed:
    """A product placed in the frame of the finished picture."""

    source: NDArray[np.uint8]
    """Height x width x 3: the photo, or its resampled part with black around it."""
    clean: NDArray[np.uint8]
    """Height x width x 3: the cut-out's colours, free of the old background where the edge is soft."""
    alpha: NDArray[np.uint8]
    """Height x width, 255 the product."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom of the product in pixels."""
    scale: float
    """Frame pixels per photo pixel."""


def frame(work: Work, *, max_bytes: int, max_pixels: int) -> Framed:
    """Decode photo and cut-out and place them. Raises `PictureError`, `NoProductError`."""
    photo = decode(work.source, max_bytes=max_bytes, max_pixels=max_pixels).rgb
    cutout = _cutout(work.inputs["cutout"], photo.size)
    settings = work.recipe.picture
    box = _box(np.asarray(cutout.getchannel("A")))
    if settings.size is None:
        return _framed(photo, cutout, box, 1.0)
    return _placed(photo, cutout, box, settings)


def _cutout(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Decode our own file, which is as large as the photo that passed the limits; RGBA."""
    again = "delete the photo's mask and cutout in the catalogue, and run the job again"
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size == size:
                return image.convert("RGBA")
            found = image.size
    except (Image.DecompressionBombError, *DAMAGE) as error:
        raise UnreadablePictureError(f"the cutout is damaged ({type(error).__name__}): {again}") from error
    msg = f"the cutout has {found[0]}x{found[1]} pixels and the photo {size[0]}x{size[1]}: {again}"
    raise UnreadablePictureError(msg)


def _box(alpha: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero((alpha > _VISIBLE).any(axis=1)), np.flatnonzero((alpha > _VISIBLE).any(axis=0))
    if not rows.size:
        raise NoProductError("the mask is empty: nothing to set on a background")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _framed(photo: Image.Image, cutout: Image.Image, box: tuple[int, int, int, int], scale: float) -> Framed:
    rgba = np.asarray(cutout)
    return Framed(np.asarray(photo), rgba[..., :3], rgba[..., 3], box, scale)


def _placed(photo: Image.Image, cutout: Image.Image, box: tuple[int, int, int, int], settings: Picture) -> Framed:
    assert settings.size is not None  # noqa: S101 - for the type checker; the caller has looked
    width, height = settings.size
    margin = round(settings.padding * min(width, height))
    left, top, right, bottom = box
    scale = min((width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top), MAX_SCALE)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    x = (width - size[0]) // 2
    y = height - margin - size[1] if settings.align == "bottom" else (height - size[1]) // 2
    frames = []
    for image in (photo, cutout):
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(image.resize(size, Image.Resampling.LANCZOS, box=box), (x, y))
        frames.append(canvas)
    return _framed(frames[0], frames[1], (x, y, x + size[0], y + size[1]), round(scale, 4))
