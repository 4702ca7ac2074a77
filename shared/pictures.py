"""Photos as they come in, pictures as they go out: one decoder, three encoders and the report's thumbnails.

Every photo is somebody else's file, so `decode` is the only place that reads one: an allow-list of formats, limits
checked from the header, and a `PictureError` for whatever is wrong with it. It may run in many threads at once.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import (  # the plugins register themselves: imported here, so that no thread does it in the middle of its work
    AvifImagePlugin,  # noqa: F401 - see above
    BmpImagePlugin,  # noqa: F401 - see above
    ExifTags,
    GifImagePlugin,  # noqa: F401 - see above
    Image,
    ImageChops,
    ImageCms,
    JpegImagePlugin,  # noqa: F401 - see above
    MpoImagePlugin,  # noqa: F401 - see above
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401 - see above
)

from shared.errors import (
    PictureTooLargeError,
    PictureTooSmallError,
    UnreadablePictureError,
    UnsupportedPictureError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_SIDE = 16
"""Pixels; a product cannot be told from its background in fewer."""

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's word for a photo to which a model added parts; marketplaces require it in the file."""

# Pillow promises no exception types for a damaged file: these are what its plugins and its C decoders were seen to raise on
# mutated files, or can by their source (asserts, divisions by a zero from the file, names missing in a half-read header).
_DAMAGE = (
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

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{GENERATED}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


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


# --- in ---------------------------------------------------------------------------------------------------------------


def decode(data: bytes, *, max_bytes: int, max_pixels: int) -> Picture:
    """Decode a photo; of an animation or a multi-page file, the first frame.

    The EXIF orientation is applied and an ICC profile is converted to sRGB (a broken profile is ignored). Deeper samples than
    8 bits are scaled down, never clipped.

    Raises `PictureTooLargeError` (before any pixel is decoded), `PictureTooSmallError` below `MIN_SIDE`, `UnreadablePictureError` for
    a damaged file and `UnsupportedPictureError` for other formats.
    """
    if not data:
        raise UnreadablePictureError("the file is empty: upload it again")
    if len(data) > max_bytes:
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
            return _convert(image, _png_depth(data) if kind == "PNG" else 8)
    except (MemoryError, Image.DecompressionBombError) as error:
        # Either needs more than a checked header says: a tile, a text chunk or a canvas beyond the picture's own size.
        raise PictureTooLargeError(
            f"the {kind} file needs more memory than there is (VITRINA_MAX_PIXELS is {max_pixels:,}): shrink the photo, "
            "or give the worker more memory and raise VITRINA_MAX_PIXELS"
        ) from error
    except _DAMAGE as error:
        raise UnreadablePictureError(
            f"the {kind} file is cut short or damaged ({_brief(error)}): upload it again"
        ) from error


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
    if not any(
        entry[3] is not None and entry[3].pattern == r"PIL\."
        for entry in warnings.filters
        if hasattr(entry[3], "pattern")
    ):
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


# --- to upright 8-bit sRGB --------------------------------------------------------------------------------------------


def _convert(image: Image.Image, depth: int) -> Picture:
    name = image.format or ""
    image.load()
    profile = image.info.get("icc_profile")
    turn = _ORIENTATIONS.get(_orientation(image))
    color, alpha = _to_eight_bits(image, depth)
    rgb = _to_srgb(color, profile)
    if turn is not None:
        rgb = rgb.transpose(turn)
        alpha = alpha and alpha.transpose(turn)
    # What the file said of itself (profile, EXIF, place and time) must not travel into what is made of it.
    rgb.info = {}
    return Picture(rgb, alpha if alpha and _means_something(alpha) else None, name)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
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
        brightest = image.getextrema()[1]
        scales = (255, 65535, 2**31) if mode == "I" else (1, 255, 65535, brightest)
        return _scaled(image, next((scale for scale in scales if brightest <= scale), 1))  # type: ignore[operator]
    return image.convert("L" if mode == "1" else "RGB")


def _is_twelve_bits(image: Image.Image) -> bool:
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,)


def _scaled(image: Image.Image, white: float) -> Image.Image:
    factor = 255 / white
    scale: Callable[[float], float] = lambda value: value * factor + 0  # noqa: E731 - Pillow reads factor and offset off it
    return image.convert("F").point(scale).convert("L")


def _alpha_of_key(color: Image.Image, key: int | tuple[int, ...], depth: int) -> Image.Image | None:
    """Make the pixels of PNG's one transparent colour (tRNS; in samples of the file's `depth`) clear, all others opaque.

    Of 16-bit samples the high byte is compared, as the low one is gone by now.
    """
    values = key if isinstance(key, tuple) else (key,)
    bands = color.split()
    if len(values) != len(bands) or not all(isinstance(value, int) for value in values):
        return None
    alpha = None
    for band, value in zip(bands, values, strict=True):
        level = value >> 8 if depth == 16 else value * 255 // (2**depth - 1)  # noqa: PLR2004 - bits
        differs = band.point([0 if sample == level else 255 for sample in range(256)])
        alpha = differs if alpha is None else ImageChops.lighter(alpha, differs)
    return alpha


def _to_srgb(color: Image.Image, profile: bytes | None) -> Image.Image:
    if color.mode == "LAB":
        return _through(color, ImageCms.createProfile("LAB"))
    if profile:
        try:
            return _through_file_profile(color, profile)
        except (ImageCms.PyCMSError, *_DAMAGE):
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
    return all(high <= 1 for _, high in change.getextrema())  # type: ignore[misc,operator,has-type]


def _through(color: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        color.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply(color)


# --- out --------------------------------------------------------------------------------------------------------------


def encode_jpeg(image: Image.Image, quality: int = 95, *, generated: bool = False) -> bytes:
    """Encode an L or RGB image; equal pixels give equal bytes. At quality 90 and above colour keeps its full resolution.

    With `generated` the file says, in XMP, that a model made part of it. Raises `PictureTooLargeError` over 65,500 pixels a side.
    """
    _check_side(image, "JPEG", 65_500)
    xmp = {"xmp": _XMP.encode()} if generated else {}
    return _save(image, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, **xmp)  # noqa: PLR2004 - see above


def encode_png(image: Image.Image, level: int = 1, *, generated: bool = False) -> bytes:
    """Encode an L, LA, RGB or RGBA image without loss; equal pixels give equal bytes. `level` is zlib's, 0 to 9.

    Level 1 is the default because it is five times faster than 6 at 1024x1024 for a tenth more bytes.
    """
    info = PngImagePlugin.PngInfo()
    if generated:
        info.add_itxt("XML:com.adobe.xmp", _XMP)
    return _save(image, "PNG", compress_level=level, pnginfo=info)


def encode_webp(image: Image.Image, quality: int = 95, *, generated: bool = False) -> bytes:
    """Encode an RGB or RGBA image; equal pixels give equal bytes. Raises `PictureTooLargeError` over 16,383 pixels a side."""
    _check_side(image, "WebP", 16_383)
    return _save(image, "WEBP", quality=quality, xmp=_XMP.encode() if generated else b"")


def thumbnail(image: Image.Image, side: int = 256, *, checkerboard: bool = False) -> bytes:
    """Make a small JPEG, at most `side` pixels wide and high, for a report.

    Transparent parts show white, or a light grey checkerboard.
    """
    small = image.copy() if image.mode in {"L", "RGB", "LA", "RGBA"} else image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    if small.mode in {"LA", "RGBA"}:
        backdrop = _checkerboard(small.size) if checkerboard else Image.new("RGB", small.size, "white")
        backdrop.paste(small.convert("RGB"), mask=small.getchannel("A"))
        small = backdrop
    return encode_jpeg(small, 80)


def _checkerboard(size: tuple[int, int], square: int = 8) -> Image.Image:
    columns, rows = (-(-length // square) for length in size)
    levels = bytes(230 if (row + column) % 2 else 255 for row in range(rows) for column in range(columns))
    board = Image.frombytes("L", (columns, rows), levels)
    board = board.resize((columns * square, rows * square), Image.Resampling.NEAREST)
    return board.crop((0, 0, *size)).convert("RGB")


def _check_side(image: Image.Image, name: str, limit: int) -> None:
    if max(image.size) > limit:
        width, height = image.size
        raise PictureTooLargeError(
            f"{name} holds at most {limit:,} pixels a side and the picture has {width}x{height}: "
            "set picture.size, or picture.format to png, in the recipe"
        )


def _save(image: Image.Image, name: str, **options: object) -> bytes:
    if image.info:  # Pillow would write its profile, comment or transparent colour into the file
        image = image.copy()
        image.info = {}
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()
