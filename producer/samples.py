"""Sample photos: pictures that scikit-image carries in its package, written as a photographer would have named them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from shared.errors import UsageError
from shared.pictures import encode_jpeg

SAMPLES = {
    "cup of coffee.jpg": ("coffee.png", (0, 0, 600, 400)),
    "space shuttle.jpg": ("astronaut.png", (300, 0, 512, 260)),
    "motorcycle.jpg": ("motorcycle_left.png", (60, 0, 741, 500)),
    "rocket.jpg": ("rocket.jpg", (250, 120, 400, 420)),
    "cat.jpg": ("chelsea.png", (0, 0, 400, 300)),
}
"""The package's pictures of one thing each, framed as it would be for a shop: left, top, right and bottom in pixels."""


def write_samples(folder: Path) -> list[str]:
    """Write the sample photos that are not there yet, and name those that the package does not carry. Raises `UsageError` without it."""
    try:
        import skimage.data  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("the sample photos come with scikit-image: install vitrina[demo], or give a folder") from None
    packaged = Path(skimage.data.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    lacking = []
    for name, (source, frame) in SAMPLES.items():
        if (folder / name).exists():
            continue
        if not (packaged / source).is_file():
            lacking.append(name)
            continue
        with Image.open(packaged / source) as image:
            (folder / name).write_bytes(encode_jpeg(image.convert("RGB").crop(frame), quality=92))
    return lacking
