"""The picture that a caption is written from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from PIL import Image

from shared.pictures import decode

if TYPE_CHECKING:
    from workers.stage import Work

View = Literal["image", "cutout", "source"]


def view(work: Work, kind: View, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """Return the finished picture, the cut-out on white, or the photo, in RGB. Raises `PictureError`."""
    # Our own files are as large as their pixels make them.
    data, limit = (work.source, max_bytes) if kind == "source" else (work.inputs[kind], None)
    picture = decode(data, max_bytes=limit, max_pixels=max_pixels)
    if picture.alpha is None:
        return picture.rgb
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture.rgb, mask=picture.alpha)
    return white
