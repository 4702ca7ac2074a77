"""Masks in the pixels that are asked for: the decoder's coarse logits placed on the photo, and mattes made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from workers.segmentation.refine import Box, cut_rows, to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from workers.segmentation.sam.generator import Masks

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Flags = NDArray[np.bool_]

OUTSIDE = -32.0
"""Logit beyond a mask's own view: surely not inside."""
STEEPNESS = 4.0
"""Of the enlarged mask's edge: one logit, the margin of the stability score, is 98 % of the way to opaque."""
SEED_CLOSE, SEED_OPEN, SEED_BLUR = 10, 20, 35
"""Pixels of the photo: diameters of the original script's ellipses, and its blur's kernel."""


def reduced(frame: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a frame's width and height with the longer side cut to `side`."""
    scale = min(1.0, side / max(frame))
    return max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale))


def place(masks: Masks, index: int) -> Floats:
    """Return one mask's logits over the whole photo, at the frame's own size; above zero is inside.

    In segment-anything's two steps, the encoder's square first, so that the edges are its own to the pixel.
    """
    view = masks.views[masks.view[index]]
    height, width = view.pixels.shape[:2]
    left, top, right, bottom = view.box
    side = max(width, height)
    logits = cv2.resize(masks.logits[index].astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    placed = np.full(view.frame[::-1], OUTSIDE, np.float32)
    placed[top:bottom, left:right] = cv2.resize(
        logits[:height, :width], (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
    )
    return placed


def flags(masks: Masks, size: tuple[int, int]) -> Flags:
    """Return all masks of a photo at a small `size` (width, height), masks x height x width.

    In one step, straight from the decoder's pixels: a hundred of them are made for every photo.
    """
    out = np.zeros((len(masks.logits), size[1], size[0]), np.bool_)
    for index, coarse in enumerate(masks.logits):
        view = masks.views[masks.view[index]]
        left, top, right, bottom = view.box
        wide, high = view.frame[0] / size[0], view.frame[1] / size[1]
        # The logits cover the encoder's whole square, of which the view fills the upper left part.
        step = len(coarse) / max(view.pixels.shape[:2])
        across = step * view.pixels.shape[1] / (right - left)
        down = step * view.pixels.shape[0] / (bottom - top)
        # Pixel centres are matched; warpAffine takes the map from output to input.
        matrix = np.array(
            [
                [across * wide, 0, across * (wide / 2 - left) - 0.5],
                [0, down * high, down * (high / 2 - top) - 0.5],
            ]
        )
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        logits = cv2.warpAffine(coarse.astype(np.float32), matrix, size, flags=how, borderMode=cv2.BORDER_REPLICATE)
        columns, rows = (np.arange(size[0]) + 0.5) * wide, (np.arange(size[1]) + 0.5) * high
        inside = ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))
        out[index] = (logits > 0) & inside
    return out


def union(masks: Masks, members: Sequence[int]) -> Floats:
    """Return the logits of several masks' union over the whole photo, at the frame's own size.

    The seams between parts, about as wide as one of the decoder's pixels, are closed.
    """
    logits = place(masks, members[0])
    for member in members[1:]:
        np.maximum(logits, place(masks, member), out=logits)
    if len(members) > 1:
        side = 2 * max(1, round(max(logits.shape) / masks.logits.shape[1])) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        logits = cast("Floats", cv2.morphologyEx(logits, cv2.MORPH_CLOSE, kernel))
    return logits


def soft(logits: Floats) -> Floats:
    """Turn logits into 0 to 1."""
    return cast("Floats", (1 / (1 + np.exp(-np.clip(logits, OUTSIDE, -OUTSIDE)))).astype(np.float32))


def enlarge(logits: Floats, size: tuple[int, int]) -> Bytes:
    """Enlarge logits to a matte of `size` (width, height), 0 to 255, without looking at the photo: the edge is as sharp as the photo's pixels."""
    box = Box(0, 0, *size)
    out = np.empty((size[1], size[0]), np.uint8)
    for top, bottom in box.strips():
        out[top:bottom] = to_bytes(soft(np.float32(STEEPNESS) * cut_rows(logits[..., None], box, top, bottom)[..., 0]))
    return out


def seed_matte(background: Floats, size: tuple[int, int]) -> Bytes:
    """Make the original script's matte of `size` (width, height), 0 to 255 the product, out of its background's logits."""
    found = cast("Bytes", (enlarge(background, size) > 127).astype(np.uint8) * np.uint8(255))  # noqa: PLR2004 - half
    for operation, diameter in ((cv2.MORPH_CLOSE, SEED_CLOSE), (cv2.MORPH_OPEN, SEED_OPEN)):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
        found = cast("Bytes", cv2.morphologyEx(found, operation, kernel))
    return cast("Bytes", 255 - cv2.GaussianBlur(found, (SEED_BLUR, SEED_BLUR), 0))
