"""No model: the mask comes with the photo, as its alpha channel or as a picture beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from shared.errors import ItemError, MaskMissingError
from shared.pictures import Picture, decode
from shared.recipe import SuppliedSegmentation
from workers.segmentation.cutout import artifacts
from workers.segmentation.gates import mask_reasons
from workers.stage import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.recipe import Recipe
    from workers.stage import Work

_ASPECT_SLACK = 0.01
# A mask made from a thumbnail is off by up to a pixel a side; more is another crop of the photo.


@dataclass(frozen=True, slots=True)
class Masked:
    """A decoded photo with the mask it came with."""

    picture: Picture
    mask: Image.Image
    """Mode L, of the photo's size, 255 the product."""


class SuppliedModel:
    """Satisfies `workers.stage.Model`; nothing is loaded and nothing inferred."""

    name = "none"

    def __init__(self, *, max_bytes: int, max_pixels: int) -> None:
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the photo and, where the recipe says so, the mask beside it."""
        return ("source", "supplied_mask") if _settings(recipe).mask == "supplied" else ("source",)

    @property
    def max_batch(self) -> int:
        """Run photos one by one. Nothing is inferred, so nothing is gained by waiting for others."""
        return 1

    def load(self, device: str, threads: int) -> None:
        """Load nothing."""

    def prepare(self, work: Work) -> Masked:
        """Decode the photo and its mask.

        Raises `MaskMissingError` when there is none, `PictureError` for what cannot be decoded and `ItemError` for a mask of another shape.
        """
        picture = decode(work.source, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        if _settings(work.recipe).mask == "alpha":
            if picture.alpha is None:
                raise MaskMissingError(
                    "the photo has no transparent part: cut it out first, or use the model 'saliency'"
                )
            return Masked(picture, picture.alpha)
        data = work.inputs.get("supplied_mask")
        if data is None:
            raise MaskMissingError("no mask lies beside the photo: check segmentation.mask_key, or add the mask")
        found = decode(data, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        # A mask is drawn either in grey or as the alpha channel of some picture.
        return Masked(picture, _fit(found.alpha or found.rgb.convert("L"), picture.size))

    def bucket(self, item: Masked) -> int:
        """Share one bucket."""
        del item
        return 0

    def infer(self, batch: Sequence[Masked]) -> list[None]:
        """Infer nothing."""
        return [None] * len(batch)

    def finish(self, work: Work, item: Masked, output: None) -> Result:
        """Judge the mask and cut out. Raises `NoProductError` for an empty mask."""
        del output
        settings = _settings(work.recipe)
        mask = np.asarray(item.mask)
        reasons, measures = mask_reasons(mask, settings.gates)
        measures |= {"source": settings.mask, "refined": False}
        # Under an alpha channel lie the product's own colours; a photo with a mask beside it holds mixed ones.
        files = artifacts(item.picture.rgb, mask, mixed=settings.mask == "supplied")
        return Result(files, reasons, measures)


def _fit(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    if mask.size == size:
        return mask
    width, height = size
    if abs(mask.width / mask.height / (width / height) - 1) > _ASPECT_SLACK:
        raise ItemError(
            f"the mask has {mask.width}x{mask.height} pixels and the photo {width}x{height}: supply a mask of the photo's shape"
        )
    return mask.resize(size, Image.Resampling.BICUBIC)


def _settings(recipe: Recipe) -> SuppliedSegmentation:
    section = recipe.segmentation
    if not isinstance(section, SuppliedSegmentation):
        raise TypeError(f"the item was sent to 'none' with a recipe for {section.model!r}")
    return section
