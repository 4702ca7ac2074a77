"""Points and a box that say where the product is, in place of the search for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_POINTS = 64
"""Of one photo; more would only slow the others of its batch."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Where the product is, in pixels of the photo counted from its upper left corner."""

    points: tuple[tuple[float, float, int], ...]
    """x, y, and 1 for a point on the product or 0 for one beside it."""
    box: tuple[float, float, float, float] | None
    """Left, top, right, bottom."""

    @classmethod
    def of(cls, fields: Mapping[str, Any], size: tuple[int, int]) -> Prompt | None:
        """Read the manifest's `points` (`[[x, y, 1 or 0], …]`) and `box` (`[left, top, right, bottom]`) of a photo of `size` (width, height).

        Returns None where there are neither. Raises `PromptError`.
        """
        points, box = fields.get("points"), fields.get("box")
        if points is None and box is None:
            return None
        prompt = cls(_points(points, size), _box(box, size))
        if prompt.box is None and not any(label for _, _, label in prompt.points):
            raise PromptError("no point lies on the product: add a point with the label 1, or a box")
        return prompt

    @property
    def shape(self) -> tuple[int, bool]:
        """Return what photos must share to be answered together: the number of points, and whether there is a box."""
        return len(self.points), self.box is not None


def _points(value: Any, size: tuple[int, int]) -> tuple[tuple[float, float, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_POINTS:
        raise PromptError(f"points must be a list of 1 to {MAX_POINTS} points [x, y, 1 or 0], not {value!r:.60}")
    points = []
    for point in value:
        numbers = _numbers(point, 3)
        if numbers is None or numbers[2] not in (0, 1):
            raise PromptError(f"a point must be [x, y, 1] on the product or [x, y, 0] beside it, not {point!r:.60}")
        x, y, label = numbers
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise PromptError(f"the point {x:g}, {y:g} lies outside the photo of {size[0]}x{size[1]} pixels")
        points.append((x, y, int(label)))
    return tuple(points)


def _box(value: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    numbers = _numbers(value, 4)
    if numbers is None:
        raise PromptError(f"box must be [left, top, right, bottom] in pixels, not {value!r:.60}")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise PromptError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} (left, top, right, bottom) holds no part of the photo "
            f"or reaches out of its {size[0]}x{size[1]} pixels"
        )
    return left, top, right, bottom


def _numbers(value: Any, count: int) -> list[float] | None:
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part) for part in value):
        return None
    return [float(part) for part in value]
