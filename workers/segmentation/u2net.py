"""U²-Net-p on ONNX Runtime: how much each part of a picture stands out. Segments by itself, and gives others a second opinion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from shared.errors import NoProductError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 320
"""Pixels; the network's input is square and fixed."""
MIN_PEAK = 0.3
"""A photo whose most salient pixel is under this holds nothing: blank and noisy frames peak at 0.06, products at 1.0."""

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
# ImageNet's, which the network was trained with.


class U2Net:
    """The network, on the CPU whatever the device: it takes 0.4 s on one core. `run` may be called from many threads."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._session: Any = None

    def load(self, threads: int) -> None:
        """Read the weights and run once. Raises `ModelMissingError`, `ModelCorruptError`."""
        import onnxruntime  # noqa: PLC0415 - heavy

        from shared.models import find  # noqa: PLC0415 - the worker's side only

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        path = find("u2netp", self._models_dir)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.run(np.zeros((3, SIDE, SIDE), np.float32))

    def run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the map of one input (3 x 320 x 320, see `to_tensor`), 320 x 320, 0 to 1."""
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
