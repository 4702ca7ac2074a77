from __future__ import annotations

import io
import struct
import threading
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import FORMATS, RED, png, quarters, read, saved, swapped_profile
from PIL import Image, TiffImagePlugin

from shared.errors import (
    PictureError,
    PictureTooLargeError,
    PictureTooSmallError,
    UnreadablePictureError,
    UnsupportedPictureError,
)
from shared.pictures import encode_jpeg, thumbnail


def test_too_many_bytes_are_refused_with_the_setting_to_raise() -> None:
    """The message has both figures and the name of the setting."""
    with pytest.raises(PictureTooLargeError, match=r"2,000 bytes .* 1,999: raise VITRINA_MAX_BYTES"):
        read(b"\xff" * 2000, max_bytes=1999)


@pytest.mark.parametrize("name", FORMATS)
def test_too_many_pixels_are_refused_with_the_setting_to_raise(name: str) -> None:
    """The message has both figures and the name of the setting; exactly the limit passes."""
    writer, options = FORMATS[name]
    data = saved(quarters(), writer, **options)
    assert read(data, max_pixels=48 * 32).size == (48, 32)
    with pytest.raises(PictureTooLargeError, match=r"48x32 = 1,536 pixels .* 1,535: raise VITRINA_MAX_PIXELS"):
        read(data, max_pixels=48 * 32 - 1)


def test_pixels_are_counted_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that claims 40 gigapixels is refused from its header; even WebP's decoder is not opened."""

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._open", never)
    huge = struct.pack("<I", 16382)[:3]
    webp = b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + huge + huge + b"\0" * 30
    for data in (png(200_000, 200_000, 8, 2, b""), webp):
        with pytest.raises(PictureTooLargeError, match=r"[\d,]{11,} pixels .* 64,000,000: raise VITRINA_MAX_PIXELS"):
            read(data, max_pixels=64_000_000)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}]
)
def test_every_kind_of_webp_header_is_measured(options: dict[str, Any]) -> None:
    """Lossless, lossy and extended WebP are refused before Pillow sees them, with the right figures."""
    data = saved(quarters(50, 34), "WEBP", **options)
    with pytest.raises(PictureTooLargeError, match="50x34"):
        read(data, max_pixels=16)


def test_the_limit_may_be_raised_over_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our setting alone decides: Pillow's own limit on pixels follows it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(saved(quarters(), "PNG"), max_pixels=2000).size == (48, 32)


def test_a_huge_tile_in_a_small_tiff_is_refused() -> None:
    """A tile is decoded whole, so that its size counts, not only the picture's."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[280], info[281] = 60_000, 60_000
    data = saved(quarters(), "TIFF", tiffinfo=info)
    # Pillow writes no tiles: two tags that it does write are renamed to TileWidth and TileLength.
    for written, wanted in ((280, TiffImagePlugin.TILEWIDTH), (281, TiffImagePlugin.TILELENGTH)):
        data = data.replace(struct.pack("<HHI", written, 3, 1), struct.pack("<HHI", wanted, 3, 1))
    with pytest.raises(PictureTooLargeError, match="60000x60000"):
        read(data)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_too_small_pictures_are_refused(size: tuple[int, int]) -> None:
    """Under 16 pixels on either side there is no product to cut out."""
    with pytest.raises(PictureTooSmallError, match=f"{size[0]}x{size[1]}"):
        read(saved(Image.new("RGB", size), "PNG"))


def test_running_out_of_memory_is_a_picture_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo within the limits that the machine cannot hold is that photo's failure, not the worker's."""

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(PictureTooLargeError, match="memory"):
        read(saved(quarters(), "BMP"))


def test_a_very_wide_picture_works() -> None:
    """A 20,000x100 panorama is decoded, encoded and made a thumbnail of."""
    picture = read(saved(Image.new("RGB", (20_000, 100), RED), "PNG"))
    assert picture.size == (20_000, 100)
    assert read(encode_jpeg(picture.rgb)).size == (20_000, 100)
    assert Image.open(io.BytesIO(thumbnail(picture.rgb))).size == (256, 1)


def test_an_empty_file_is_unreadable() -> None:
    """An empty object is a failed upload, not another format."""
    with pytest.raises(UnreadablePictureError, match="empty"):
        read(b"")


def test_a_file_cut_short_is_unreadable() -> None:
    """Half a file of any format is refused, never half decoded."""
    for name, (writer, options) in FORMATS.items():
        if name != "MPO":  # half of it still holds one whole photo
            data = saved(quarters(640, 480).effect_spread(30), writer, **options)
            with pytest.raises(UnreadablePictureError, match=name):
                read(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'/>",
        b"%PDF-1.7 and so on",
        b"BMW makes cars, and this is a text about them.",
        b"hello",
        b"\0" * 100,
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 80,
        saved(quarters(), "PPM"),
        saved(quarters(), "ICO"),
        saved(quarters(), "JPEG2000"),
    ],
    ids=["svg", "pdf", "text", "short", "zeros", "heic", "ppm", "ico", "jp2"],
)
def test_other_files_are_unsupported(data: bytes) -> None:
    """What is no picture, or one outside the allow-list, is told apart from a damaged one."""
    with pytest.raises(UnsupportedPictureError, match="convert"):
        read(data)


def _samples() -> list[bytes]:
    image = quarters(40, 24).effect_spread(5)
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    extra: dict[str, Any] = {"exif": exif, "icc_profile": swapped_profile()}
    return [
        saved(image, "JPEG", **extra),
        saved(image, "JPEG", progressive=True),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "MPO", save_all=True, append_images=[image]),
        saved(alpha, "PNG", **extra),
        saved(image.quantize(9), "PNG", transparency=1),
        saved(image, "WEBP", **extra),
        saved(alpha, "WEBP", lossless=True),
        saved(alpha, "AVIF", **extra),
        saved(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        saved(image, "TIFF", **extra),
        saved(alpha, "TIFF", compression="tiff_deflate"),
        saved(image, "TIFF", compression="jpeg"),
        saved(image.convert("F"), "TIFF"),
        saved(image.quantize(9), "TIFF", compression="packbits"),
        saved(image, "BMP"),
        saved(image.quantize(9), "BMP"),
    ]


SAMPLES = _samples()


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(data: st.DataObject) -> None:
    """Whatever bytes are changed, removed, doubled or cut off: RGB within the limits, or a `PictureError`."""
    file = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are where damage hurts, so that half of it goes there.
        at = data.draw(st.integers(0, 63) | st.integers(0, max(0, len(file) - 1)))
        change = data.draw(st.sampled_from(("set", "number", "cut", "remove", "double")))
        if change == "set":
            file[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif change == "number":
            file[at : at + 4] = data.draw(
                st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01"))
            )
        elif change == "cut":
            del file[at:]
        elif change == "remove":
            del file[at : at + data.draw(st.integers(1, 40))]
        else:
            file[at:at] = file[at : at + data.draw(st.integers(1, 40))]
    try:
        picture = read(bytes(file), max_pixels=100_000)
    except PictureError:
        return
    width, height = picture.size
    assert picture.rgb.mode == "RGB"
    assert width * height <= 100_000
    assert picture.alpha is None or (picture.alpha.mode, picture.alpha.size) == ("L", picture.size)


@given(st.binary(max_size=200), st.sampled_from([b"", *(sample[:16] for sample in SAMPLES)]))
def test_noise_is_refused(noise: bytes, start: bytes) -> None:
    """Random bytes, even behind a good signature, are a `PictureError`."""
    with pytest.raises(PictureError):
        read(start + noise, max_pixels=1000)


def test_no_warning_leaks_from_any_thread() -> None:
    """Pillow's warnings are silenced for all threads at once, without `catch_warnings` around the decoding."""
    data = saved(quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    tiff = bytearray(saved(quarters(), "TIFF", description="x" * 90))
    tiff[-60:] = b""
    failures: list[BaseException] = []

    def work() -> None:
        for photo in (data, bytes(tiff)) * 5:
            try:
                read(photo)
            except PictureError:
                pass
            except BaseException as error:  # noqa: BLE001 - carried out of the thread
                failures.append(error)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert seen == []
