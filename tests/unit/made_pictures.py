"""Photos for the tests, made on the spot."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageCms

from shared.pictures import Picture, decode

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Red top left, green top right, blue bottom left, yellow bottom right: no two orientations look alike."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    """Write an image with Pillow's own writer."""
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def read(data: bytes, max_bytes: int = 10_000_000, max_pixels: int = 10_000_000) -> Picture:
    """Decode under limits that do not matter here."""
    return decode(data, max_bytes=max_bytes, max_pixels=max_pixels)


def corners(picture: Picture) -> list[Any]:
    """Take one pixel of each quarter, in reading order."""
    width, height = picture.size
    return [picture.rgb.getpixel((x, y)) for y in (4, height - 5) for x in (4, width - 5)]


def near(found: Any, wanted: tuple[int, ...], tolerance: int = 12) -> bool:
    """Compare two colours but for what lossy formats change."""
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG that Pillow itself cannot write; each row in `rows` begins with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 95, "subsampling": 0}),
    "MPO": ("MPO", {"save_all": True, "append_images": [quarters()], "quality": 95, "subsampling": 0}),
    "PNG": ("PNG", {}),
    "WEBP": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "BMP": ("BMP", {}),
}


def swapped_profile() -> bytes:
    """Make sRGB with its red and green primaries exchanged: nothing but a conversion can put the colours right."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    entries = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)
