"""Photos as they come in, pictures as they go out: one decoder, three encoders and the report's thumbnails."""

from shared.pictures.colors import Picture
from shared.pictures.reading import MIN_SIDE, decode, pixels
from shared.pictures.writing import GENERATED, encode_jpeg, encode_png, encode_webp, thumbnail

__all__ = [
    "GENERATED",
    "MIN_SIDE",
    "Picture",
    "decode",
    "encode_jpeg",
    "encode_png",
    "encode_webp",
    "pixels",
    "thumbnail",
]
