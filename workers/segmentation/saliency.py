"""U²-Net-p on ONNX Runtime: the most salient object is the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from shared.errors import NoProductError
from shared.pictures import Picture, decode
from shared.recipe import SaliencySegmentation
from workers.stage import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import Recipe
    from workers.stage import Work

SIDE = 320
"""Pixels; the network's input is square and fixed."""
MIN_PEAK = 0.3
"""A photo whose most salient pixel is under this holds nothing: blank and noisy frames peak at 0.06, products at 1.0."""

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
# ImageNet's, which the network was trained with.


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo on its way through the network."""

    picture: Picture
    tensor: NDArray[np.float32] | None
    """3 x 320 x 320, normalised; None when the photo's own alpha channel is the mask."""


class SaliencyModel:
    """Satisfies `workers.stage.Model`. The network runs on the CPU, whatever the device: it takes 0.4 s on one core."""

    name = "saliency"

    def __init__(self, models_dir: Path, *, max_bytes: int, max_pixels: int) -> None:
        self._models_dir = models_dir
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._session: Any = None

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
        import onnxruntime  # noqa: PLC0415 - heavy

        import workers.segmentation.cutout  # noqa: F401, PLC0415 - so that no task's thread pays for the import
        from shared.models import find  # noqa: PLC0415 - the worker's side only

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        path = find("u2netp", self._models_dir)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        cv2.setNumThreads(1)  # `finish` already runs in many threads
        self._run(np.zeros((3, SIDE, SIDE), np.float32))

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
        return [None if photo.tensor is None else self._run(photo.tensor) for photo in batch]

    def finish(self, work: Work, item: Photo, output: NDArray[np.float32] | None) -> Result:
        """Make the mask at full resolution, judge it, cut out. Raises `NoProductError`."""
        from workers.segmentation.cutout import artifacts  # noqa: PLC0415 - heavy
        from workers.segmentation.gates import mask_reasons  # noqa: PLC0415 - heavy
        from workers.segmentation.refine import refine, upsample  # noqa: PLC0415 - heavy

        settings = _settings(work.recipe)
        rgb, alpha = item.picture.rgb, item.picture.alpha
        if output is None:
            mask = np.asarray(alpha)
            reasons, measures = mask_reasons(mask, settings.gates)
            return Result(artifacts(rgb, mask, mixed=False), reasons, {**measures, "source": "alpha", "refined": False})
        saliency = normalize(output)
        mask = refine(rgb, saliency) if settings.refine else upsample(saliency, rgb.size)
        reasons, measures = mask_reasons(mask, settings.gates, saliency)
        measures |= {"source": "model", "refined": settings.refine}
        return Result(artifacts(rgb, mask, mixed=True), reasons, measures)

    def _run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        # The first of seven outputs is the fused map; the others served the training.
        first, name = self._session.get_outputs()[0].name, self._session.get_inputs()[0].name
        return cast("NDArray[np.float32]", self._session.run([first], {name: tensor[None]})[0][0, 0])


def to_tensor(rgb: Image.Image) -> NDArray[np.float32]:
    """Make the network's input, 3 x 320 x 320: divided by its largest value, then by ImageNet's mean and deviation."""
    # The gap lets Pillow shrink a large photo in whole steps first.
    small = np.asarray(rgb.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3), np.float32)
    scaled = (small / max(float(small.max()), 1.0) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def normalize(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stretch a map to 0 to 1. Raises `NoProductError` where that would only blow up noise."""
    low, high = float(output.min()), float(output.max())
    if not high >= MIN_PEAK:  # also NaN
        raise NoProductError("nothing stands out in the photo: check the photo, or supply a mask")
    return (output - low) / max(high - low, 1e-6)


def _settings(recipe: Recipe) -> SaliencySegmentation:
    section = recipe.segmentation
    if not isinstance(section, SaliencySegmentation):
        raise TypeError(f"the item was sent to 'saliency' with a recipe for {section.model!r}")
    return section
