"""Segment Anything finds every mask of a photo; the product's is chosen among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from shared.errors import NoProductError
from shared.models import locate
from shared.pictures import Picture, decode
from shared.recipe import SamSegmentation
from workers.segmentation.cutout import artifacts
from workers.segmentation.gates import mask_reasons
from workers.segmentation.outline import faint_part
from workers.segmentation.refine import refine
from workers.segmentation.sam.choice import Choice, choose, seed_background
from workers.segmentation.sam.drawing import enlarge, flags, reduced, seed_matte, soft, union
from workers.segmentation.sam.prompts import Prompt
from workers.segmentation.u2net import U2Net, normalize, to_tensor
from workers.stage import Result
from workers.warming import warm_up

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import Recipe
    from workers.segmentation.sam.generator import Grid, Masks
    from workers.segmentation.sam.views import View
    from workers.stage import Work

CHOICE_SIDE = 192
"""Pixels of the longer side at which masks are compared: which one is the product shows at any size, and finer only costs time."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo, ready for the networks."""

    picture: Picture
    views: tuple[View, ...]
    """Empty when the photo's own alpha channel is the mask."""
    grid: Grid
    prompt: Prompt | None


class SamModel:
    """Satisfies `workers.stage.Model`."""

    name = "sam"

    def __init__(
        self,
        section: SamSegmentation,
        models_dir: Path,
        *,
        max_bytes: int,
        max_pixels: int,
        max_batch: int | None = None,
    ) -> None:
        """`max_batch` is the operator's limit, where there is one."""
        self._section = section
        self._most = max_batch
        self._models_dir = models_dir
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._prior = U2Net(models_dir) if section.prior else None
        self._generator: Any = None
        self._on_gpu = False

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the photo."""
        del recipe
        return ("source",)

    @property
    def max_batch(self) -> int | None:
        """Fill a GPU; on a CPU a batch only makes the first photo wait for the last."""
        return self._section.gpu_batch if self._on_gpu else 1

    def load(self, device: str, threads: int) -> None:
        """Read the weights, of the prior too, and look at one blank photo. Raises `ModelMissingError`, `ModelCorruptError`."""
        import torch  # noqa: PLC0415 - heavy

        from workers.devices import device_for, dtype_for  # noqa: PLC0415 - imports torch
        from workers.segmentation.sam.generator import Generator  # noqa: PLC0415 - imports torch
        from workers.segmentation.sam.networks import load  # noqa: PLC0415 - imports torch

        place = device_for(device)
        self._on_gpu = place.type == "cuda"
        if not self._on_gpu:
            torch.set_num_threads(threads)
        cv2.setNumThreads(1)  # `finish` already runs in many threads
        if self._prior is not None:
            self._prior.load(1)  # likewise
        path = locate(self._section.weights, self._models_dir)
        # bfloat16 rather than float16: it has float32's range, so that nothing overflows in so deep an encoder.
        precision = dtype_for(self._section.precision, place, half=torch.bfloat16)
        networks = load(path, place, precision, compile=self._section.compile)
        self._generator = Generator(networks)
        warm_up(self._generator.warm_up, compiled=self._section.compile, limits=(self._most, self.max_batch))

    def prepare(self, work: Work) -> Photo:
        """Decode the photo and cut it into what the encoder looks at. Raises `PictureError`, `PromptError`."""
        from workers.segmentation.sam.generator import Grid  # noqa: PLC0415 - imports torch
        from workers.segmentation.sam.views import cut  # noqa: PLC0415 - imports torch

        settings = _settings(work.recipe)
        picture = decode(work.source, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        prompt = Prompt.of(work.fields, picture.size)
        grid = Grid(settings.points_per_side, settings.min_predicted_iou, settings.min_stability, settings.max_overlap)
        # Who says where the product is knows better than an alpha channel.
        if settings.use_alpha and picture.alpha is not None and prompt is None:
            return Photo(picture, (), grid, None)
        layers = 0 if prompt else settings.crop_layers
        return Photo(picture, tuple(cut(picture.rgb, self._generator.side, layers)), grid, prompt)

    def bucket(self, item: Photo) -> Hashable:
        """Keep together what takes the same way: prompts of one shape, or one grid over as many views."""
        return ("prompt", *item.prompt.shape) if item.prompt else ("grid", len(item.views), *item.grid)

    def infer(self, batch: Sequence[Photo]) -> list[Masks | None]:
        """Return the masks of each photo, best first; None for one that brings its own mask."""
        if not batch[0].views:
            return [None] * len(batch)
        if batch[0].prompt is None:
            return list(self._generator.everything([photo.views for photo in batch], batch[0].grid))
        views = [photo.views[0] for photo in batch]
        prompts = [photo.prompt for photo in batch]
        return list(self._generator.prompted(views, prompts, [photo.picture.size for photo in batch]))

    def finish(self, work: Work, item: Photo, output: Masks | None) -> Result:
        """Choose the product's mask, bring it to full resolution, judge it, cut out. Raises `NoProductError`."""
        settings = _settings(work.recipe)
        rgb, alpha = item.picture.rgb, item.picture.alpha
        if output is None:
            mask = np.asarray(alpha)
            reasons, measures = mask_reasons(mask, settings.gates)
            return Result(artifacts(rgb, mask, mixed=False), reasons, {**measures, "source": "alpha", "refined": False})
        measures = {"source": "model", "candidates": len(output.logits)}
        if settings.choice == "seed" and item.prompt is None:
            background = seed_background(output.boxes, rgb.width / output.views[0].frame[0])
            mask = seed_matte(union(output, [background]), rgb.size)
            reasons, found = mask_reasons(mask, settings.gates)
            measures |= {"choice": "seed", "refined": False}
        else:
            choice = self._choose(item, output, measures)
            logits = union(output, choice.members)
            likely = soft(logits)
            mask = refine(rgb, likely) if settings.refine else enlarge(logits, rgb.size)
            reasons, found = mask_reasons(mask, settings.gates, likely, faint_part(rgb, mask))
            measures |= {"score": choice.score, "runner_up": choice.runner_up, "masks": len(choice.members)}
            measures["refined"] = settings.refine
            if item.prompt is None and (choice.lead < settings.min_lead or not choice.grounded):
                reasons = (*reasons, "choice_unsure")
        return Result(artifacts(rgb, mask, mixed=True), reasons, {**found, **measures})

    def _choose(self, item: Photo, masks: Masks, measures: dict[str, Any]) -> Choice:
        """Choose the product's masks, and note in `measures` by what."""
        if item.prompt is not None:
            measures["choice"] = "prompt"
            best, second = (round(float(score), 4) for score in masks.predicted_iou[:2])
            return Choice((0,), best, second)
        prior = self._saliency(item.picture)
        measures["choice"] = "product" if prior is None else "product with prior"
        size = reduced(masks.views[0].frame, CHOICE_SIDE)
        if prior is not None:
            prior = cast("NDArray[np.float32]", cv2.resize(prior, size, interpolation=cv2.INTER_AREA))
        return choose(flags(masks, size), masks.predicted_iou, masks.stability, prior)

    def _saliency(self, picture: Picture) -> NDArray[np.float32] | None:
        """Return how much each part of a photo stands out, 0 to 1; None where nobody asked or nothing does."""
        if self._prior is None:
            return None
        try:
            return normalize(self._prior.run(to_tensor(picture.rgb)))
        except NoProductError:
            return None  # the masks may still show one


def _settings(recipe: Recipe) -> SamSegmentation:
    section = recipe.segmentation
    if not isinstance(section, SamSegmentation):
        raise TypeError(f"the item was sent to 'sam' with a recipe for {section.model!r}")
    return section
