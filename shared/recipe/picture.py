"""The finished picture: its frame, its file and its gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.recipe.section import Section

MAX_SIDE = 8192
"""Pixels of the longest side that a frame may have."""
_Side = Annotated[int, Field(ge=64, le=MAX_SIDE)]


class PictureGates(Section):
    """When a finished picture is doubted. Levels run from 0 to 255."""

    min_contrast: float = Field(default=2.0, ge=0)
    """Smallest standard deviation of the whole picture; less is a flat frame."""
    min_brightness: float = Field(default=4.0, ge=0)
    """Smallest mean; less is a black frame."""


class Picture(Section):
    """The finished picture: its frame and its file."""

    format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG and WebP only."""
    size: tuple[_Side, _Side] | None = None
    """Width and height in pixels; None keeps the photo's own frame."""
    padding: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Free margin on each side, as a part of the frame's shorter side. Only with `size`."""
    align: Literal["center", "bottom"] = "center"
    """Where the product stands in the frame. Only with `size`."""
    feather: float = Field(default=2.0, ge=0, le=20)
    """Pixels at the mask's edge over which product and background mix."""
    gates: PictureGates = PictureGates()
