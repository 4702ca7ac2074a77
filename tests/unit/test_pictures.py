from __future__ import annotations

import struct
from typing import Any

import pytest
from made_pictures import BLUE, FORMATS, GREEN, RED, YELLOW, corners, near, png, quarters, read, saved, swapped_profile
from PIL import Image, ImageCms


@pytest.mark.parametrize("name", FORMATS)
def test_every_allowed_format_is_decoded_to_upright_rgb(name: str) -> None:
    """Each format of the allow-list comes out as RGB with its colours in place."""
    writer, options = FORMATS[name]
    picture = read(saved(quarters(), writer, **options))
    assert (picture.format, picture.rgb.mode, picture.size, picture.alpha) == (name, "RGB", (48, 32), None)
    assert all(near(a, b) for a, b in zip(corners(picture), (RED, GREEN, BLUE, YELLOW), strict=True))
    assert type(picture.rgb) is Image.Image
    assert picture.rgb.info == {}


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(name: str, orientation: int) -> None:
    """A photo stored in any of the eight EXIF orientations comes out upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # shown turned clockwise, so stored turned counter-clockwise
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = quarters() if undo is None else quarters().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    writer, options = FORMATS[name]
    picture = read(saved(stored, writer, exif=exif, **options))
    assert picture.size == (48, 32)
    assert all(near(a, b) for a, b in zip(corners(picture), (RED, GREEN, BLUE, YELLOW), strict=True))


def test_alpha_turns_with_the_picture() -> None:
    """The alpha channel is brought upright together with the colours."""
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read(saved(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif))
    assert picture.alpha is not None
    assert picture.alpha.size == picture.size == (48, 32)
    assert [picture.alpha.getpixel(at) for at in ((4, 4), (40, 4), (4, 28))] == [0, 255, 255]


def test_broken_exif_costs_only_the_orientation() -> None:
    """A photo whose EXIF block is garbage is still decoded."""
    assert read(saved(quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)).size == (48, 32)


def test_grey_and_one_bit_become_rgb() -> None:
    """Modes without colour keep their levels in all three channels."""
    assert read(saved(Image.new("L", (20, 20), 77), "PNG")).rgb.getpixel((3, 3)) == (77, 77, 77)
    assert read(saved(Image.new("1", (20, 20), 1), "PNG")).rgb.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(("sample", "level"), [(0, 0), (0x8000, 128), (0x1234, 0x12), (0xFFFF, 255)])
def test_sixteen_bit_samples_are_scaled_not_clipped(sample: int, level: int) -> None:
    """Deep samples keep their place between black and white: PNG grey and colour, TIFF of both byte orders."""
    grey = png(16, 16, 16, 0, (b"\0" + struct.pack(">H", sample) * 16) * 16)
    colour = png(16, 16, 16, 2, (b"\0" + struct.pack(">HHH", sample, 0, 0xFFFF) * 16) * 16)
    assert read(grey).rgb.getpixel((5, 5)) == (level, level, level)
    assert read(colour).rgb.getpixel((5, 5)) == (level, 0, 255)
    for mode, order in (("I;16", "<"), ("I;16B", ">")):
        image = Image.frombytes(mode, (16, 16), struct.pack(f"{order}H", sample) * 256)
        assert read(saved(image, "TIFF")).rgb.getpixel((5, 5)) == (level, level, level)


def test_twelve_bit_samples_are_scaled_to_their_own_white() -> None:
    """A 12-bit TIFF of half white comes out half white, not a sixteenth of it."""
    image = Image.frombytes("I;16", (16, 16), (b"\x80\x08\x00" * 200)[:512])
    # Pillow reads 12 bits but does not write them: the tag BitsPerSample is changed, and the samples are packed by hand.
    data = saved(image, "TIFF").replace(struct.pack("<HHIH", 258, 3, 1, 16), struct.pack("<HHIH", 258, 3, 1, 12))
    assert read(data).rgb.getpixel((5, 5)) == (127, 127, 127)


@pytest.mark.parametrize(
    ("mode", "white", "half", "level"),
    [("F", 1.0, 0.5, 127), ("F", 255.0, 51.0, 51), ("F", 65535.0, 32768.0, 127), ("I", 65535, 32768, 127)],
)
def test_samples_without_a_stated_scale_fill_the_usual_one(mode: str, white: float, half: float, level: int) -> None:
    """Float and 32-bit TIFFs are read on the smallest usual scale that holds them."""
    image = Image.new(mode, (20, 20), half)
    image.putpixel((0, 0), white)
    picture = read(saved(image, "TIFF"))
    assert picture.rgb.getpixel((0, 0)) == (255, 255, 255)
    assert near(picture.rgb.getpixel((9, 9)), (level,) * 3, 1)


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_is_kept_apart_and_colours_under_it_stay(name: str) -> None:
    """A cut-out photo yields its alpha, and its colours are not mixed with a backdrop."""
    image = quarters().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((48, 32)).point(lambda v: max(1, v)))
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True, "exact": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    picture = read(saved(image, name, **options.get(name, {})))
    assert picture.alpha is not None
    assert picture.alpha.mode == "L"
    assert picture.alpha.getextrema() != (255, 255)
    assert near(picture.rgb.getpixel((4, 4)), RED)
    assert near(picture.rgb.getpixel((44, 4)), GREEN)


@pytest.mark.parametrize("level", [0, 255])
def test_alpha_that_says_nothing_is_dropped(level: int) -> None:
    """An alpha channel that is opaque or empty throughout is no cut-out."""
    image = quarters().convert("RGBA")
    image.putalpha(level)
    picture = read(saved(image, "PNG"))
    assert picture.alpha is None
    assert corners(picture) == [RED, GREEN, BLUE, YELLOW]


def test_grey_with_alpha_keeps_both() -> None:
    """An LA photo yields grey colours and its alpha."""
    image = Image.new("LA", (20, 20), (90, 255))
    image.putpixel((2, 3), (90, 10))
    picture = read(saved(image, "PNG"))
    assert picture.alpha is not None
    assert (picture.alpha.getpixel((2, 3)), picture.rgb.getpixel((2, 3))) == (10, (90, 90, 90))


def test_a_palette_keeps_its_colours_and_its_transparency() -> None:
    """PNG and GIF palettes come out as colours, with alpha where the palette has a clear entry."""
    image = quarters().quantize(4)
    assert corners(read(saved(image, "PNG"))) == [RED, GREEN, BLUE, YELLOW]
    clear = image.getpixel((4, 4))
    for name in ("PNG", "GIF"):
        alpha = read(saved(image, name, transparency=clear)).alpha
        assert alpha is not None
        assert [alpha.getpixel(at) for at in ((4, 4), (44, 4), (4, 28), (44, 28))] == [0, 255, 255, 255]


def _one_clear_pixel(depth: int, color: int, clear: bytes, other: bytes, key: bytes) -> bytes:
    """Write rows of `other` with one row of `clear`; both are 16 packed pixels."""
    rows = b"\0" + clear + (b"\0" + other) * 15
    return png(16, 16, depth, color, rows, (b"tRNS", key))


@pytest.mark.parametrize(
    "data",
    [
        _one_clear_pixel(8, 0, b"\x64" * 16, b"\xc8" * 16, b"\0\x64"),
        _one_clear_pixel(2, 0, b"\x55" * 4, b"\xaa" * 4, b"\0\x01"),
        _one_clear_pixel(1, 0, b"\xff" * 2, b"\0" * 2, b"\0\x01"),
        _one_clear_pixel(16, 0, b"\x64\x01" * 16, b"\xc8\x01" * 16, b"\x64\x01"),
        _one_clear_pixel(8, 2, b"\1\2\3" * 16, b"\1\2\4" * 16, b"\0\1\0\2\0\3"),
        _one_clear_pixel(16, 2, b"\1\0\2\0\3\0" * 16, b"\1\0\2\0\4\0" * 16, b"\1\0\2\0\3\0"),
    ],
    ids=["grey8", "grey2", "grey1", "grey16", "rgb8", "rgb16"],
)
def test_pngs_one_transparent_colour_becomes_alpha(data: bytes) -> None:
    """PNG's tRNS colour is clear at every sample depth, and only that colour."""
    alpha = read(data).alpha
    assert alpha is not None
    assert (alpha.getpixel((3, 0)), alpha.getpixel((3, 1))) == (0, 255)


def test_cmyk_becomes_rgb() -> None:
    """CMYK photos, Adobe's inverted JPEGs included, come out in the right colours."""
    for name in ("JPEG", "TIFF"):
        picture = read(saved(Image.new("CMYK", (24, 24), (0, 255, 255, 0)), name))
        assert near(picture.rgb.getpixel((9, 9)), RED)


def test_lab_becomes_rgb() -> None:
    """A Lab TIFF comes out in sRGB: L=255 without a tint is white."""
    picture = read(saved(Image.new("LAB", (24, 24), (255, 128, 128)), "TIFF"))
    assert near(picture.rgb.getpixel((9, 9)), (255, 255, 255), 3)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_icc_profile_is_converted_to_srgb(name: str) -> None:
    """Colours tagged with another RGB space come out in sRGB: through swapped primaries red is green."""
    writer, options = FORMATS[name]
    picture = read(saved(quarters(), writer, icc_profile=swapped_profile(), **options))
    assert near(picture.rgb.getpixel((4, 4)), GREEN)
    assert near(picture.rgb.getpixel((44, 4)), RED)
    assert near(picture.rgb.getpixel((4, 28)), BLUE)


def test_palette_alpha_and_grey_go_through_their_profile_too() -> None:
    """A profile counts in every mode, and leaves alpha alone."""
    image = quarters().convert("RGBA")
    image.putpixel((40, 20), (0, 0, 255, 9))
    picture = read(saved(image, "PNG", icc_profile=swapped_profile()))
    assert near(picture.rgb.getpixel((4, 4)), GREEN)
    assert picture.alpha is not None
    assert picture.alpha.getpixel((40, 20)) == 9
    assert near(read(saved(quarters().quantize(4), "PNG", icc_profile=swapped_profile())).rgb.getpixel((4, 4)), GREEN)
    grey = Image.new("L", (20, 20), 100)
    assert near(read(saved(grey, "PNG", icc_profile=swapped_profile())).rgb.getpixel((4, 4)), (100, 100, 100), 2)


def test_an_srgb_profile_changes_no_pixel() -> None:
    """Photos that are sRGB already, whatever their profile is called, keep their exact numbers."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.merge("RGB", [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L")])
    assert read(saved(image, "PNG", icc_profile=profile)).rgb.tobytes() == image.tobytes()


@pytest.mark.parametrize("profile", [b"not a profile", swapped_profile()[:200], swapped_profile()[:500]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    """A photo with a profile that cannot be read is decoded as if it had none."""
    assert corners(read(saved(quarters(), "PNG", icc_profile=profile))) == [RED, GREEN, BLUE, YELLOW]


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    """An RGB profile in a CMYK photo is not applied."""
    data = saved(Image.new("CMYK", (24, 24), (0, 255, 255, 0)), "JPEG", icc_profile=swapped_profile())
    assert near(read(data).rgb.getpixel((9, 9)), RED)
