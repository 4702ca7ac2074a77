"""The only place that reads somebody else's picture file.

An allow-list of formats, limits checked from the header, and a `PictureError` for whatever is wrong with the file. It may run in many
threads at once.
"""

from __future__ import annotations

import io
import re
import struct
import warnings

from PIL import (  # the plugins register themselves: imported here, so that no thread does it in the middle of its work
    AvifImagePlugin,  # noqa: F401 - see above
    BmpImagePlugin,  # noqa: F401 - see above
    GifImagePlugin,  # noqa: F401 - see above
    Image,
    JpegImagePlugin,  # noqa: F401 - see above
    MpoImagePlugin,  # noqa: F401 - see above
    PngImagePlugin,  # noqa: F401 - see above
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401 - see above
)

from shared.errors import (
    PictureError,
    PictureTooLargeError,
    PictureTooSmallError,
    UnreadablePictureError,
    UnsupportedPictureError,
)
from shared.pictures.colors import DAMAGE, Picture, convert

MIN_SIDE = 16
"""Pixels; a product cannot be told from its background in fewer."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
"""Sizes in bytes of the information headers in use; two letters "BM" alone would also match a text."""


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""How `warnings` keeps the filter that `_quiet_pillow` sets."""


def decode(data: bytes, *, max_bytes: int | None, max_pixels: int) -> Picture:
    """Decode a photo; of an animation or a multi-page file, the first frame.

    The EXIF orientation is applied and an ICC profile is converted to sRGB (a broken profile is ignored). Deeper samples than
    8 bits are scaled down, never clipped.

    `max_bytes` of None is for our own files, which are as large as their pixels make them. Raises `PictureTooLargeError` (before any pixel is decoded), `PictureTooSmallError` below `MIN_SIDE`, `UnreadablePictureError` for
    a damaged file and `UnsupportedPictureError` for other formats.
    """
    if not data:
        raise UnreadablePictureError("the file is empty: upload it again")
    if max_bytes is not None and len(data) > max_bytes:
        raise PictureTooLargeError(
            f"the file has {len(data):,} bytes and the limit is {max_bytes:,}: raise VITRINA_MAX_BYTES or shrink the photo"
        )
    kind = _sniff(data)
    if kind is None:
        raise UnsupportedPictureError(
            "not a JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP picture: convert the photo to one of these"
        )
    _quiet_pillow(max_pixels)
    try:
        with _open(data, kind, max_pixels) as image:
            return convert(image, _png_depth(data) if kind == "PNG" else 8)
    except Image.DecompressionBombError as error:
        # Pillow's check comes before ours for a header far over the limit; only its message has the figure.
        claimed = re.search(r"\d+", str(error))
        raise PictureTooLargeError(
            f"the picture has {int(claimed.group()) if claimed else 0:,} pixels and the limit is {max_pixels:,}: "
            "raise VITRINA_MAX_PIXELS or shrink the photo"
        ) from error
    except MemoryError as error:
        raise PictureTooLargeError(
            f"the {kind} file needs more memory than there is (VITRINA_MAX_PIXELS is {max_pixels:,}): shrink the photo, "
            "or give the worker more memory and raise VITRINA_MAX_PIXELS"
        ) from error
    except DAMAGE as error:
        raise UnreadablePictureError(
            f"the {kind} file is cut short or damaged ({_brief(error)}): upload it again"
        ) from error


def pixels(data: bytes, max_pixels: int) -> int:
    """Return how many pixels a picture's header claims; 0 for what `decode` would refuse."""
    kind = _sniff(data)
    if not data or kind is None:
        return 0
    _quiet_pillow(max_pixels)
    try:
        with _open(data, kind, max_pixels) as image:
            return image.width * image.height
    except (Image.DecompressionBombError, PictureError, MemoryError, *DAMAGE):
        return 0


def _brief(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if text.isprintable() and len(text) <= 120 else type(error).__name__  # noqa: PLR2004 - one line of a report


def _sniff(data: bytes) -> str | None:
    """Name the format by its first bytes. A file cut short inside them counts as that format."""
    for magic, name in _MAGIC:
        if magic.startswith(data[: len(magic)]):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    # "mif1" is shared with HEIC: then the list of compatible brands in the same box decides.
    if data[4:8] == b"ftyp" and any(brand in data[8 : min(64, data[3] + 1)] for brand in (b"avif", b"avis")):
        return "AVIF"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def _quiet_pillow(max_pixels: int) -> None:
    """Make Pillow's own limit and warnings follow ours, for the whole process.

    `warnings.catch_warnings` is shared by all threads, so one thread leaving it would bring the warnings of others back.
    A filter set once and kept is safe. Pillow's limit is only ever raised, for the same reason; it stays as a second net.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _open(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Read the header and check it; nothing the size of the picture is allocated."""
    if kind == "WEBP" and (size := _webp_size(data)):
        _check_size(size, max_pixels)  # Pillow allocates WebP's canvas as it opens
    image = Image.open(io.BytesIO(data), formats=[kind] if kind != "JPEG" else ["JPEG", "MPO"])
    _check_size(image.size, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile is decoded whole, however little of it lies in the picture.
        tags = image.tag_v2
        tile = (tags.get(TiffImagePlugin.TILEWIDTH, 0), tags.get(TiffImagePlugin.TILELENGTH, 0))
        _check_pixels(tile, max_pixels)
    return image


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    _check_pixels(size, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise PictureTooSmallError(
            f"the picture has {width}x{height} pixels; at least {MIN_SIDE} a side are needed: send a larger photo"
        )


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureTooLargeError(
            f"the picture has {width}x{height} = {width * height:,} pixels and the limit is {max_pixels:,}: "
            "raise VITRINA_MAX_PIXELS or shrink the photo"
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first chunk (RFC 9649, sections 2.5 to 2.7); None when it is none of the three known."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:  # noqa: PLR2004 - the longest of the three headers
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _png_depth(data: bytes) -> int:
    """Bits per sample, from the header chunk, which always comes first."""
    return data[24]
