"""When a mask is doubted: numbers of a finished mask, and the reasons they give to look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from shared.errors import NoProductError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shared.recipe import MaskGates

INSIDE = 128
"""A pixel whose mask is at least this belongs to the product (0 to 255)."""
CRUMB = 0.01
"""A piece smaller than this part of the largest one is not counted as a fragment."""
_LOW, _HIGH = 0.3, 0.7
# The two cuts of the stability measure: a sure model has little in between.
_LABEL_PIXELS = 2_000_000
# Pieces are counted on a mask of at most this many pixels: labels take four bytes each.


def mask_reasons(
    mask: NDArray[np.uint8], gates: MaskGates, saliency: NDArray[np.float32] | None = None, faint: float | None = None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Judge a finished mask.

    `mask` is height x width, 0 to 255; `saliency`, where a model made the mask, is its map of any size, 0 to 1, and gives the
    stability; `faint` is the part of the outline where the photo shows no edge (see `outline.faint_part`). Returns the reasons (of
    `mask_small`, `mask_large`, `mask_border`, `mask_fragments`, `mask_unstable`, `mask_faint`) and the measures `area`, `border` and
    `faint` (fractions), `fragments` (a count) and `stability` (IoU).

    Raises `NoProductError` when no pixel belongs to the product.
    """
    inside = mask >= INSIDE
    area = float(inside.mean())
    if not inside.any():
        raise NoProductError("no product was found in the photo: check the photo, or supply a mask")
    measures: dict[str, Any] = {
        "area": round(area, 4),
        "border": round(border_part(inside), 4),
        "fragments": count_fragments(inside),
    }
    failed = {
        "mask_small": area < gates.min_area,
        "mask_large": area > gates.max_area,
        "mask_border": measures["border"] > gates.max_border,
        "mask_fragments": measures["fragments"] > gates.max_fragments,
    }
    if saliency is not None:
        measures["stability"] = round(stability(saliency), 4)
        failed["mask_unstable"] = measures["stability"] < gates.min_stability
    if faint is not None:
        measures["faint"] = round(faint, 4)
        failed["mask_faint"] = faint > gates.max_faint
    return tuple(reason for reason, doubt in failed.items() if doubt), measures


def border_part(inside: NDArray[np.bool_]) -> float:
    """Return the part (0 to 1) of the frame's outermost pixels that the product covers."""
    edge = np.concatenate([inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]])
    return float(edge.mean())


def count_fragments(inside: NDArray[np.bool_]) -> int:
    """Count the separate pieces, without crumbs under `CRUMB` of the largest."""
    small = inside.view(np.uint8)
    step = int(np.ceil(np.sqrt(inside.size / _LABEL_PIXELS)))
    if step > 1:
        height, width = (max(1, side // step) for side in inside.shape)
        shares = cv2.resize(small * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
        # A block a quarter full counts, so that a thin strap does not fall to pieces.
        small = (shares >= INSIDE // 2).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(small, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return max(1, int((areas >= CRUMB * areas.max(initial=0)).sum()))


def stability(saliency: NDArray[np.float32]) -> float:
    """Return the overlap (IoU, 0 to 1) of the masks cut from a map (0 to 1) at a low and at a high threshold."""
    # The higher cut lies inside the lower, so that their overlap is a ratio of areas.
    return float((saliency > _HIGH).sum() / max(1, int((saliency > _LOW).sum())))
