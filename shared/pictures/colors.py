"""From any mode, profile and orientation to upright 8-bit sRGB, with alpha apart."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from PIL import ExifTags, Image, ImageChops, ImageCms, TiffImagePlugin

if TYPE_CHECKING:
    from collections.abc import Callable

# Pillow promises no exception types for a damaged file: these are what its plugins and its C decoders were seen to raise on
# mutated files, or can by their source (asserts, divisions by a zero from the file, names missing in a half-read header).
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
)

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded photo."""

    rgb: Image.Image
    """Mode RGB, sRGB, upright. Under transparent pixels it holds the file's own colours, not mixed with any backdrop."""
    alpha: Image.Image | None
    """Mode L, the same size, 255 opaque. None when the file has no alpha, or one that is opaque or empty throughout."""
    format: str
    """JPEG, MPO, PNG, WEBP, AVIF, GIF, TIFF or BMP."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.size


def convert(image: Image.Image, depth: int) -> Picture:
    """Load an opened image and turn it into a `Picture`; `depth` is the bits per sample of a PNG, else 8. Raises one of `DAMAGE`."""
    name = image.format or ""
    image.load()
    profile = image.info.get("icc_profile")
    turn = _ORIENTATIONS.get(_orientation(image))
    color, alpha = _to_eight_bits(image, depth)
    rgb = _to_srgb(color, profile)
    if turn is not None:
        rgb = rgb.transpose(turn)
        alpha = alpha and alpha.transpose(turn)
    if rgb is image:
        rgb = image.copy()  # an opened image keeps its whole file in memory
    # What the file said of itself (profile, EXIF, place and time) must not travel into what is made of it.
    rgb.info = {}
    return Picture(rgb, alpha if alpha and _means_something(alpha) else None, name)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1  # the pixels are fine, and nothing says which way is up
    return value if isinstance(value, int) else 1


def _means_something(alpha: Image.Image) -> bool:
    low, high = alpha.getextrema()
    return low != 255 and high != 0  # noqa: PLR2004 - opaque


def _to_eight_bits(image: Image.Image, depth: int) -> tuple[Image.Image, Image.Image | None]:
    """Split any mode into colours (L, RGB, CMYK or LAB) and alpha (L or None)."""
    key = image.info.get("transparency")
    mode = image.mode
    if mode in {"P", "PA"}:
        # Pillow applies a palette's transparency, whichever of its three forms it has.
        clear = key is not None or mode == "PA" or (image.palette is not None and image.palette.mode == "RGBA")
        image, key = image.convert("RGBA" if clear else "RGB"), None
    elif mode in {"La", "RGBa"}:
        image = image.convert(mode.upper())  # divides the colours by alpha
    if image.mode in {"LA", "RGBA"}:
        *bands, alpha = image.split()
        return (Image.merge("RGB", bands) if len(bands) == 3 else bands[0]), alpha  # noqa: PLR2004 - R, G, B
    color = _opaque_to_eight_bits(image)
    return color, None if key is None else _alpha_of_key(color, key, depth)


def _opaque_to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    if mode.startswith("I;16") and not _is_twelve_bits(image):
        # The high byte of each sample: what Pillow itself takes of 16-bit colour, and no 4-byte copy in between.
        high = 0 if mode == "I;16B" else 1
        return Image.frombytes("L", image.size, image.tobytes()[high::2])
    if mode.startswith("I;16"):
        return _scaled(image.convert("I"), 4095)
    if mode in {"I", "F"}:
        # Nothing in the file says what white is: the smallest usual full scale that holds the brightest sample.
        _, brightest = cast("tuple[float, float]", image.getextrema())
        scales = (255, 65535, 2**31) if mode == "I" else (1, 255, 65535, brightest)
        return _scaled(image, next((scale for scale in scales if brightest <= scale), 1))
    return image.convert("L" if mode == "1" else "RGB")


def _is_twelve_bits(image: Image.Image) -> bool:
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,)


def _scaled(image: Image.Image, white: float) -> Image.Image:
    factor = 255 / white
    scale: Callable[[float], float] = lambda value: value * factor + 0  # noqa: E731 - Pillow reads factor and offset off it
    return image.convert("F").point(scale).convert("L")


def _alpha_of_key(color: Image.Image, key: int | tuple[int, ...], depth: int) -> Image.Image | None:
    """Make the pixels of PNG's one transparent colour (tRNS; in samples of the file's `depth`) clear, all others opaque.

    Of 16-bit samples the high byte is compared, as the low one is gone by now. One-bit keys come
    from Pillow as 0 or 255 already.
    """
    values = key if isinstance(key, tuple) else (key,)
    bands = color.split()
    if len(values) != len(bands) or not all(isinstance(value, int) for value in values):
        return None
    alpha = None
    for band, value in zip(bands, values, strict=True):
        level = value >> 8 if depth == 16 else min(255, value * 255 // (2**depth - 1))  # noqa: PLR2004 - bits
        differs = band.point([0 if sample == level else 255 for sample in range(256)])
        alpha = differs if alpha is None else ImageChops.lighter(alpha, differs)
    return alpha


def _to_srgb(color: Image.Image, profile: bytes | None) -> Image.Image:
    if color.mode == "LAB":
        return _through(color, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if profile:
        try:
            return _through_file_profile(color, profile)
        except (ImageCms.PyCMSError, *DAMAGE):
            pass  # a broken profile spoils no photo: its numbers are read as sRGB, as browsers do
    return color.convert("RGB")


def _through_file_profile(color: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and color.mode == "L":
        color = color.convert("RGB")  # a grey photo out of a program that tags everything alike
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != color.mode:
        return color.convert("RGB")  # the profile of some other picture
    if space == "RGB" and _changes_nothing(source):
        return color if color.mode == "RGB" else color.convert("RGB")
    return _through(color, source)


def _changes_nothing(source: ImageCms.ImageCmsProfile) -> bool:
    """Tell whether a profile is sRGB under whatever name, so that most photos keep their exact pixels."""
    levels = range(0, 256, 51)
    probe = Image.new("RGB", (6, 36))
    probe.putdata([(r, g, b) for r in levels for g in levels for b in levels])
    change = ImageChops.difference(probe, _through(probe, source))
    return all(high <= 1 for _, high in change.getextrema())  # type: ignore[misc]


def _through(color: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        color.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply(color)
