"""The starter caption: an ImageNet label and the dominant colour, in sentences of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shared.errors import NoProductError
from shared.models import find
from shared.pictures import decode
from workers.captioning.colors import Color, dominant_color
from workers.captioning.gates import caption_reasons
from workers.captioning.sentences import caption, russian_color
from workers.captioning.vocabulary import Label, families, labels
from workers.stage import Artifact, Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import Recipe
    from workers.stage import Work

SIDE = 224
"""Pixels; the network's input."""
MARGIN = 1.2
"""Side of the square crop over the product's longer side."""
BACKDROPS = (255, 0)
"""Grey levels that the product is shown on, one view each. On either alone a product of that shade loses its outline."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one item brings to its batch, and keeps for its sentence."""

    views: NDArray[np.uint8]
    """(backdrops, 224, 224, 3), 0-255."""
    color: Color | None


@dataclass(frozen=True, slots=True)
class Guess:
    """What the product was taken for."""

    label: Label | None
    """None when nothing reached the confidence asked for."""
    confidence: float
    """Of the label, or of the best one when there is none; 0-1."""
    index: int | None
    """ImageNet's number; None for a family of classes."""


class LabelsModel:
    """EfficientNet-Lite0 on the cut-out product, and a table of words."""

    name = "labels"

    def __init__(self, models_dir: Path, *, max_pixels: int) -> None:
        self._models_dir = models_dir
        self._max_pixels = max_pixels
        self._network: Any = None
        self._device: Any = None

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the cut-out product."""
        del recipe
        return ("cutout",)

    @property
    def max_batch(self) -> int:
        """Run photos one by one. On a CPU a batch was measured to be no faster than its photos one by one."""
        return 1

    def load(self, device: str, threads: int) -> None:
        """Read the weights and classify one grey square. Raises `ModelMissingError`, `ModelCorruptError`, `UsageError`."""
        import torch  # noqa: PLC0415 - heavy

        from workers.captioning.efficientnet import read_network  # noqa: PLC0415 - imports torch
        from workers.devices import device_for  # noqa: PLC0415 - imports torch

        torch.set_num_threads(threads)
        self._device = device_for(device)
        network = read_network(find("efficientnet-lite0", self._models_dir))
        # Channels last is a third faster on a CPU for these depthwise convolutions.
        self._network = network.to(self._device).to(memory_format=torch.channels_last)
        self.infer([Prepared(np.full((len(BACKDROPS), SIDE, SIDE, 3), 127, np.uint8), None)])

    def prepare(self, work: Work) -> Prepared:
        """Cut the product's square out of the frame and name its colour. Raises `PictureError`, `NoProductError`."""
        picture = decode(work.inputs["cutout"], max_bytes=None, max_pixels=self._max_pixels)
        alpha = picture.alpha or Image.new("L", picture.size, 255)
        # The faint rim of a matte would widen the crop for nothing.
        box = alpha.point(lambda level: 255 * (level > 127)).getbbox() or alpha.getbbox()  # noqa: PLR2004 - half
        if box is None:
            raise NoProductError("the cutout is empty: look at the photo and its mask")
        rgb, alpha = picture.rgb.crop(box), alpha.crop(box)
        color = dominant_color(np.asarray(rgb), np.asarray(alpha))
        return Prepared(np.stack([_view(rgb, alpha, level) for level in BACKDROPS]), color)

    def bucket(self, item: Prepared) -> int:
        """Share one bucket: all views have one shape."""
        del item
        return 0

    def infer(self, batch: Sequence[Prepared]) -> list[NDArray[np.float32]]:
        """Return the 1,000 class probabilities of each item; the logits of its views are averaged."""
        import torch  # noqa: PLC0415 - heavy

        from workers.captioning.efficientnet import MEAN, SPREAD  # noqa: PLC0415 - imports torch

        views = torch.from_numpy(np.stack([item.views for item in batch])).to(self._device)
        with torch.inference_mode():
            flat = views.flatten(0, 1).permute(0, 3, 1, 2)  # already channels last in memory
            logits = self._network((flat.float() - MEAN) / SPREAD)
            probabilities = logits.unflatten(0, (len(batch), -1)).mean(1).softmax(1).cpu().numpy()
        return list(probabilities)

    def finish(self, work: Work, item: Prepared, output: NDArray[np.float32]) -> Result:
        """Write the captions, what they rest on, and whether to doubt them."""
        settings = work.recipe.caption
        if settings.model != "labels":
            msg = f"a recipe for {settings.model} came to the model 'labels'"
            raise TypeError(msg)
        guess = best_guess(output, settings.min_confidence)
        color = item.color.name if item.color else None
        captions: dict[str, str] = {language: caption(guess.label, color, language) for language in settings.languages}
        record = {"captions": captions, **_evidence(guess, item.color, output)}
        return Result(
            {"caption": Artifact(json.dumps(record, ensure_ascii=False).encode(), "application/json")},
            caption_reasons(captions, certain=guess.label is not None),
            {
                "label": guess.label.en if guess.label else None,
                "confidence": round(guess.confidence, 3),
                "color": color,
                "color_share": item.color.share if item.color else None,
            },
        )


def best_guess(probabilities: NDArray[np.float32], min_confidence: float) -> Guess:
    """Name the product as narrowly as `min_confidence` allows: a label, else a family, else nothing.

    Labels with one Russian name count together (ImageNet has sunglasses, laptops and bathtubs twice). Places, people and pages are passed over, and their
    probability is given to no other label: it stays a doubt. Only their family may have it (a shoe shop speaks for footwear).
    """
    table = labels()
    named: dict[str, float] = {}
    related: dict[str, float] = {}
    for label, probability in zip(table, probabilities.tolist(), strict=True):
        if label.goods:
            named[label.ru] = named.get(label.ru, 0.0) + probability
        if label.family:
            related[label.family] = related.get(label.family, 0.0) + probability
    name = max(named, key=named.__getitem__)
    family = max(related, key=related.__getitem__)
    index = max((i for i, label in enumerate(table) if label.ru == name), key=lambda i: probabilities[i])
    if named[name] >= min_confidence:
        return Guess(table[index], named[name], index)
    if related[family] >= min_confidence:
        return Guess(families()[family], related[family], None)
    return Guess(None, named[name], index)


def _evidence(guess: Guess, color: Color | None, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    table = labels()
    shown = guess.label or (table[guess.index] if guess.index is not None else None)
    first = np.argsort(-probabilities, kind="stable")[:3].tolist()
    return {
        "label": shown
        and {"index": guess.index, "en": shown.en, "ru": shown.ru, "confidence": round(guess.confidence, 3)},
        "guesses": [{"index": i, "en": table[i].en, "confidence": round(float(probabilities[i]), 3)} for i in first],
        "color": color
        and {
            "name_en": color.name,
            "name_ru": russian_color(color.name),
            "share": color.share,
            "hex": color.hex,
        },
    }


def _view(rgb: Image.Image, alpha: Image.Image, level: int) -> NDArray[np.uint8]:
    """Put the product in the middle of a square of one grey and scale it to the network's input."""
    flat = Image.new("RGB", rgb.size, (level,) * 3)
    flat.paste(rgb, mask=alpha)
    scale = SIDE / (max(rgb.size) * MARGIN)
    width, height = (max(round(length * scale), 1) for length in rgb.size)
    small = flat.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2)
    square = Image.new("RGB", (SIDE, SIDE), (level,) * 3)
    square.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square)
