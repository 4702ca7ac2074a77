"""Sample photos: pictures that scikit-image carries in its package, written as a photographer would have named them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from shared.errors import UsageError
from shared.pictures import encode_jpeg

SAMPLES = {
    "coffee.png": "cup of coffee.jpg",
    "chelsea.png": "cat.jpg",
    "rocket.jpg": "rocket.jpg",
    "motorcycle_left.png": "motorcycle.jpg",
    "astronaut.png": "astronaut.jpg",
    "horse.png": "horse.jpg",
    "coins.png": "coins.jpg",
    "logo.png": "logo.jpg",
}


def write_samples(folder: Path) -> None:
    """Write the sample photos that are not there yet. Raises `UsageError` without scikit-image."""
    try:
        import skimage.data  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("the sample photos come with scikit-image: install vitrina[demo], or give a folder") from None
    packaged = Path(skimage.data.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in SAMPLES.items():
        if (packaged / source).is_file() and not (folder / name).exists():
            with Image.open(packaged / source) as image:
                (folder / name).write_bytes(encode_jpeg(image.convert("RGB"), quality=92))
