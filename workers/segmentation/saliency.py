"""Segmentation by saliency: the most salient object is the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shared.pictures import Picture, decode
from shared.recipe import SaliencySegmentation
from workers.segmentation.u2net import U2Net, normalize, to_tensor
from workers.stage import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import Recipe
    from workers.stage import Work


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo on its way through the network."""

    picture: Picture
    tensor: NDArray[np.float32] | None
    """3 x 320 x 320, normalised; None when the photo's own alpha channel is the mask."""


class SaliencyModel:
    """Satisfies `workers.stage.Model`."""

    name = "saliency"

    def __init__(self, models_dir: Path, *, max_bytes: int, max_pixels: int) -> None:
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._network = U2Net(models_dir)

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the photo."""
        del recipe
        return ("source",)

    @property
    def max_batch(self) -> int:
        """Run photos one by one. The network takes one photo at a time: a batch would only make the first one wait for the last."""
        return 1

    def load(self, device: str, threads: int) -> None:
        """Read the weights and run once. Raises `ModelMissingError`, `ModelCorruptError`."""
        del device
        import cv2  # noqa: PLC0415 - heavy

        import workers.segmentation.cutout  # noqa: PLC0415 - so that no task's thread pays for the import
        import workers.segmentation.outline  # noqa: F401, PLC0415 - as above

        self._network.load(threads)
        cv2.setNumThreads(1)  # `finish` already runs in many threads

    def prepare(self, work: Work) -> Photo:
        """Decode the photo. Raises `PictureError`."""
        picture = decode(work.source, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        if _settings(work.recipe).use_alpha and picture.alpha is not None:
            return Photo(picture, None)
        return Photo(picture, to_tensor(picture.rgb))

    def bucket(self, item: Photo) -> str:
        """Keep photos that need no network apart, so that they do not wait for it."""
        return "alpha" if item.tensor is None else "photo"

    def infer(self, batch: Sequence[Photo]) -> list[NDArray[np.float32] | None]:
        """Return the map of each photo, 320 x 320, 0 to 1; None for one that brings its own mask.

        The published file fixes the batch at one, and on a CPU a larger batch saves nothing: the photos go one by one.
        """
        return [None if photo.tensor is None else self._network.run(photo.tensor) for photo in batch]

    def finish(self, work: Work, item: Photo, output: NDArray[np.float32] | None) -> Result:
        """Make the mask at full resolution, judge it, cut out. Raises `NoProductError`."""
        from workers.segmentation.cutout import artifacts  # noqa: PLC0415 - heavy
        from workers.segmentation.gates import mask_reasons  # noqa: PLC0415 - heavy
        from workers.segmentation.outline import faint_part  # noqa: PLC0415 - heavy
        from workers.segmentation.refine import refine, upsample  # noqa: PLC0415 - heavy

        settings = _settings(work.recipe)
        rgb, alpha = item.picture.rgb, item.picture.alpha
        if output is None:
            mask = np.asarray(alpha)
            reasons, measures = mask_reasons(mask, settings.gates)
            return Result(artifacts(rgb, mask, mixed=False), reasons, {**measures, "source": "alpha", "refined": False})
        saliency = normalize(output)
        mask = refine(rgb, saliency) if settings.refine else upsample(saliency, rgb.size)
        reasons, measures = mask_reasons(mask, settings.gates, saliency, faint_part(rgb, mask))
        measures |= {"source": "model", "refined": settings.refine}
        return Result(artifacts(rgb, mask, mixed=True), reasons, measures)


def _settings(recipe: Recipe) -> SaliencySegmentation:
    section = recipe.segmentation
    if not isinstance(section, SaliencySegmentation):
        raise TypeError(f"the item was sent to 'saliency' with a recipe for {section.model!r}")
    return section
