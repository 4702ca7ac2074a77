"""The finished picture: product over background, judged and encoded. The same for every background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from shared.pictures import encode_jpeg, encode_png, encode_webp
from workers.inpainting.compose import Composition, compose
from workers.inpainting.gates import picture_reasons
from workers.stage import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shared.recipe import Picture, Recipe
    from workers.inpainting.framing import Framed


def finish_picture(
    recipe: Recipe, product: Framed, background: NDArray[np.uint8] | None, *, generated: bool
) -> tuple[Artifact, tuple[str, ...], dict[str, Any]]:
    """Set a product on a background (height x width x 3), or on nothing; return the file, the reasons to review it and the measures.

    `generated` marks the file as made by a program (IPTC).
    """
    settings = recipe.picture
    composition = compose(product, background, settings.feather)
    # Where nothing stands behind the product, there is nothing else to judge.
    judged = composition.alpha if background is None else None
    reasons, measures = picture_reasons(composition.rgb, settings.gates, composition.preserved_max_difference, judged)
    height, width = product.alpha.shape
    recorded: dict[str, Any] = {
        **measures,
        "width": width,
        "height": height,
        "scale": product.scale,
        "preserved_pixels": composition.preserved_pixels,
        "preserved_max_difference": composition.preserved_max_difference,
    }
    return _encode(settings, composition, transparent=background is None, generated=generated), reasons, recorded


def _encode(settings: Picture, composition: Composition, *, transparent: bool, generated: bool) -> Artifact:
    image = Image.fromarray(composition.rgb)
    if transparent:
        image.putalpha(Image.fromarray(composition.alpha))
    if settings.format == "png":
        return Artifact(encode_png(image, generated=generated), "image/png")
    if settings.format == "webp":
        return Artifact(encode_webp(image, settings.quality, generated=generated), "image/webp")
    return Artifact(encode_jpeg(image, settings.quality, generated=generated), "image/jpeg")
