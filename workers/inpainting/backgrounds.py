"""The backgrounds that need no weights: studio, color, image, transparent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
from PIL import Image, ImageOps

from shared.pictures import decode
from workers.inpainting.finishing import finish_picture
from workers.inpainting.framing import Framed, frame
from workers.inpainting.shadow import cast_shadow
from workers.inpainting.studio import backdrop_color, hex_to_lab, studio
from workers.stage import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shared.recipe import Recipe
    from workers.stage import Work


class DrawnBackground(ABC):
    """What the four share: the product is framed, a background drawn, both composed and encoded. Satisfies `workers.stage.Model`."""

    name: str
    generated: ClassVar[bool] = False
    """Whether the picture carries the mark of a generated one."""

    def __init__(self, *, max_bytes: int, max_pixels: int) -> None:
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}

    @abstractmethod
    def draw(self, work: Work, product: Framed) -> NDArray[np.uint8] | None:
        """Return the background of the product's frame, height x width x 3; None for transparency."""

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the photo and its cut-out."""
        del recipe
        return ("source", "cutout")

    @property
    def max_batch(self) -> int:
        """Run photos one by one. Nothing is inferred, so nothing is gained by waiting for others."""
        return 1

    def load(self, device: str, threads: int) -> None:
        """Load nothing; OpenCV is kept to its share of the cores."""
        del device
        cv2.setNumThreads(threads)

    def prepare(self, work: Work) -> Framed:
        """Decode and frame. Raises `PictureError`, `NoProductError`."""
        return frame(work, **self._limits)

    def bucket(self, item: Framed) -> int:
        """Share one bucket: there is no tensor to share."""
        del item
        return 0

    def infer(self, batch: Sequence[Framed]) -> list[None]:
        """Do nothing: drawing needs no model, and runs better in the tasks' own threads."""
        return [None] * len(batch)

    def finish(self, work: Work, item: Framed, output: None) -> Result:
        """Draw, compose, judge, encode."""
        del output
        background = self.draw(work, item)
        picture, reasons, measures = finish_picture(work.recipe, item, background, generated=self.generated)
        return Result({"image": picture}, reasons, measures)


class StudioModel(DrawnBackground):
    """A neutral gradient, darker behind a white product, with a soft shadow."""

    name = "studio"
    generated = True

    def draw(self, work: Work, product: Framed) -> NDArray[np.uint8]:
        """Draw the backdrop and the shadow."""
        settings: Any = work.recipe.background
        color = hex_to_lab(settings.color) if settings.color else backdrop_color(product)
        return cast_shadow(studio(product, color, work.seed), product.alpha, product.box, settings.shadow)


class ColorModel(DrawnBackground):
    """One plain colour, with a shadow if asked for."""

    name = "color"

    def draw(self, work: Work, product: Framed) -> NDArray[np.uint8]:
        """Fill the frame."""
        settings: Any = work.recipe.background
        rgb = [int(settings.color[i : i + 2], 16) for i in (1, 3, 5)]
        plain = np.broadcast_to(np.array(rgb, np.uint8), (*product.alpha.shape, 3)).copy()
        return cast_shadow(plain, product.alpha, product.box, settings.shadow)


class ImageModel(DrawnBackground):
    """A ready picture, scaled to cover the frame."""

    name = "image"

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the background as well."""
        return (*super().reads(recipe), "background")

    def draw(self, work: Work, product: Framed) -> NDArray[np.uint8]:
        """Cover the frame, cut evenly on both sides. Raises `PictureError`."""
        settings: Any = work.recipe.background
        height, width = product.alpha.shape
        picture = decode(work.inputs["background"], **self._limits).rgb
        covered = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
        return cast_shadow(covered, product.alpha, product.box, settings.shadow)


class TransparentModel(DrawnBackground):
    """Nothing behind the product."""

    name = "transparent"

    def draw(self, work: Work, product: Framed) -> None:
        """Draw nothing."""
        del work, product
