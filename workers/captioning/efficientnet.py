"""EfficientNet-Lite0 for ImageNet's 1,000 classes, written out so that no model library is needed.

The layout is Google's EfficientNet-Lite0 (Tan and Le 2019, the variant without squeeze-and-excitation and with ReLU6). The
checkpoint was converted from TensorFlow, hence the padding, the epsilon and the scale of the levels.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.errors import ModelCorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIZE = 224
"""Side of the square input, in pixels."""
MEAN, SPREAD = 127.0, 128.0
"""The network sees (level - MEAN) / SPREAD, levels 0-255. With ImageNet's usual mean and deviation the right labels lose a fifth of their confidence."""
EPSILON = 1e-3
"""Of the batch norms: TensorFlow's choice, 100 times torch's."""

_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

_TOP_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class _Layer(nn.Module):
    """Convolution, batch norm and, where wanted, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        # TensorFlow's SAME for an even side: at stride 2 the odd pixel of padding lies at the right and the bottom.
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self._padding = [before, after, before, after] if kernel > 1 else None
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=EPSILON)
        self._relu = relu

    def fold(self) -> None:
        """Multiply the batch norm into the convolution: same result, a fifth less time on a CPU."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self._padding:
            x = functional.pad(x, self._padding)
        x = self.norm(self.conv(x))
        return functional.relu6(x) if self._relu else x


class _Block(nn.Module):
    """Widen, filter each channel, narrow again; add the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Layer(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _Layer(wide, wide, kernel, stride, groups=wide)
        self.project = _Layer(wide, outputs, relu=False)
        self._adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self._adds else y


class EfficientNetLite0(nn.Module):
    """Takes float (N, 3, 224, 224) scaled by `MEAN` and `SPREAD`; returns logits (N, 1000) in ImageNet's order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Layer(3, _STEM, 3, 2)
        blocks, channels = [], _STEM
        for count, kernel, stride, expansion, outputs in _STAGES:
            for index in range(count):
                blocks.append(_Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _Layer(channels, _HEAD)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch."""
        features: Tensor = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def read_network(path: Path) -> EfficientNetLite0:
    """Build the network with the weights at `path`, ready to classify. Raises `ModelCorruptError` when they are not EfficientNet-Lite0's."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = EfficientNetLite0()
        network.load_state_dict(rename(weights), strict=True)
    except (KeyError, ValueError, RuntimeError, EOFError, AttributeError, UnpicklingError) as error:
        msg = f"{path} does not hold EfficientNet-Lite0's weights: delete it and fetch the models again"
        raise ModelCorruptError(msg) from error
    network.eval()
    for layer in network.modules():
        if isinstance(layer, _Layer):
            layer.fold()
    return network


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the checkpoint's tensors our modules' names. Raises KeyError for a name that it should not hold."""
    renamed = {}
    for name, tensor in weights.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, layer, leaf = rest
            renamed[f"blocks.{number}.{_BLOCK_NAMES[layer]}.{leaf}"] = tensor
        else:
            renamed[f"{_TOP_NAMES[first]}.{'.'.join(rest)}"] = tensor
    return renamed
