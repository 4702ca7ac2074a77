"""What an engine is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Request:
    """One picture to generate."""

    image: NDArray[np.uint8]
    """Height x width x 3, at the size to generate."""
    mask: NDArray[np.float32]
    """Height x width, 1 where the background is wanted, 0 on the product; cut at one half."""
    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One generated picture."""

    rgb: NDArray[np.uint8]
    """Height x width x 3."""
    blanked: bool = False
    """The model's own safety checker replaced it by a black one."""
