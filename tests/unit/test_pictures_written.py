from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import RED, near, quarters, read, swapped_profile
from PIL import Image

from shared.errors import (
    PictureTooLargeError,
)
from shared.pictures import GENERATED, encode_jpeg, encode_png, encode_webp, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable


images = st.builds(
    lambda mode, size, seed: Image.frombytes(
        mode, size, bytes((i * i * seed + i // 7) % 256 for i in range(size[0] * size[1] * len(mode)))
    ),
    st.sampled_from(["RGB", "RGBA"]),
    st.tuples(st.integers(16, 40), st.integers(16, 40)),
    st.integers(1, 255),
)


@given(images)
def test_a_png_round_trip_is_exact(image: Image.Image) -> None:
    """PNG gives back every colour and every alpha value, those under transparency included."""
    picture = read(encode_png(image))
    assert picture.rgb.tobytes() == Image.merge("RGB", image.split()[:3]).tobytes()
    if image.mode == "RGBA" and image.getchannel("A").getextrema() not in {(0, 0), (255, 255)}:
        assert picture.alpha is not None
        assert picture.alpha.tobytes() == image.getchannel("A").tobytes()


@given(images, st.integers(1, 100), st.booleans())
def test_encoding_keeps_the_size_and_is_deterministic(image: Image.Image, quality: int, generated: bool) -> None:
    """Every encoder gives a file of the same frame, and the same bytes twice."""
    rgb = image.convert("RGB")
    for encode, given_image, options in (
        (encode_jpeg, rgb, {"quality": quality}),
        (encode_png, image, {}),
        (encode_webp, image, {"quality": quality}),
    ):
        file = encode(given_image, generated=generated, **options)
        assert file == encode(given_image, generated=generated, **options)
        assert read(file).size == image.size


ENCODERS: dict[str, Callable[..., bytes]] = {"jpeg": encode_jpeg, "png": encode_png, "webp": encode_webp}


@pytest.mark.parametrize("name", ENCODERS)
def test_generated_pictures_say_so_in_their_xmp(name: str) -> None:
    """The IPTC digital source type is in the file's XMP when, and only when, a model made part of the picture."""
    made, plain = ENCODERS[name](quarters(), generated=True), ENCODERS[name](quarters())
    assert f">{GENERATED}</Iptc4xmpExt:DigitalSourceType>".encode() in Image.open(io.BytesIO(made)).info["xmp"]
    assert GENERATED.encode() not in plain
    assert "xmp" not in Image.open(io.BytesIO(plain)).info


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_of_an_images_own_metadata_is_written(name: str) -> None:
    """Profile, EXIF and comments that an image carries along stay out of the file."""
    image = quarters()
    image.info = {"icc_profile": swapped_profile(), "exif": b"Exif\0\0secret", "comment": b"secret", "dpi": (1, 1)}
    assert ENCODERS[name](image) == ENCODERS[name](quarters())
    assert image.info["comment"] == b"secret"


def test_jpeg_keeps_full_colour_resolution_at_high_quality() -> None:
    """4:4:4 from quality 90, 4:2:0 below."""
    sampling = {q: Image.open(io.BytesIO(encode_jpeg(quarters(), q))).layer[0][1:3] for q in (89, 90)}  # type: ignore[attr-defined]
    assert sampling == {89: (2, 2), 90: (1, 1)}


@pytest.mark.parametrize(("encode", "side"), [(encode_jpeg, 65_501), (encode_webp, 16_384)])
def test_a_side_beyond_the_format_is_refused_with_the_way_out(encode: Callable[..., bytes], side: int) -> None:
    """JPEG and WebP have their own limits on a side; the message names what to set."""
    with pytest.raises(PictureTooLargeError, match=r"picture\.size"):
        encode(Image.new("RGB", (side, 16)))


def test_a_thumbnail_shows_transparency_on_white_or_a_checkerboard() -> None:
    """Clear parts are white, or squares of two light greys when asked; the product keeps its colour."""
    image = Image.new("RGBA", (512, 256), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (256, 0, 512, 256))
    white = Image.open(io.BytesIO(thumbnail(image)))
    board = Image.open(io.BytesIO(thumbnail(image, checkerboard=True)))
    assert white.size == board.size == (256, 128)
    assert (white.format, white.mode) == ("JPEG", "RGB")
    assert near(white.getpixel((20, 20)), (255, 255, 255))
    assert near(white.getpixel((200, 60)), RED)
    assert near(board.getpixel((4, 4)), (255, 255, 255))
    assert near(board.getpixel((12, 4)), (230, 230, 230))
    assert near(board.getpixel((200, 60)), RED)
