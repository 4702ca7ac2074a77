"""When a finished picture is doubted rather than trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shared.recipe import PictureGates


def picture_reasons(
    picture: NDArray[np.uint8], gates: PictureGates, difference: int, alpha: NDArray[np.uint8] | None = None
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return why a person should look at a picture (height x width x 3), and the measures taken, in levels of 0 to 255.

    With `alpha` (height x width) only its visible pixels are judged.

    `picture_black`: the mean is under `min_brightness`. `picture_flat`: the standard deviation is under `min_contrast`.
    `product_changed`: a product pixel differs from the source by `difference` levels.
    """
    means, deviations = cv2.meanStdDev(picture, mask=alpha)
    brightness, contrast = float(means.mean()), float(deviations.mean())
    reasons = []
    if brightness < gates.min_brightness:
        reasons.append("picture_black")
    if contrast < gates.min_contrast:
        reasons.append("picture_flat")
    if difference:
        reasons.append("product_changed")
    return tuple(reasons), {"brightness": round(brightness, 2), "contrast": round(contrast, 2)}
