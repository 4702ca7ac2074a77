"""The stage's model for generated backgrounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from PIL import Image

from shared.errors import NoProductError
from shared.models import locate
from shared.recipe import DiffusionBackground
from workers.inpainting.diffusion.presets import bucket, settings
from workers.inpainting.diffusion.prompts import prompt_for
from workers.inpainting.diffusion.request import Picture, Request
from workers.inpainting.finishing import finish_picture
from workers.inpainting.framing import Framed, frame
from workers.segmentation.u2net import SIDE, U2Net, normalize, to_tensor
from workers.stage import Result
from workers.warming import warm_up

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import PictureGates, Recipe
    from workers.inpainting.diffusion.engine import Engine, KandinskyEngine
    from workers.inpainting.diffusion.presets import Settings
    from workers.stage import Work

_RESEED = 1_000_003
_VARIANT = 7_919
# Primes: the seeds of tries and variants of one item never meet.
_MAX_SEED = 2**31
_CANVAS = 200
# Grey level around a product that was set in a marketplace's frame: the model sees no photo there.
_GPU_SIDE = 512
# Side, in pixels, of the pictures of which `gpu_batch` fill a GPU.
_SLACK = 0.02
# Part of the picture's side within which a second segmentation may differ at the edge without the product having grown.


@dataclass(frozen=True, slots=True)
class Prepared:
    """A product with everything its pictures are generated from."""

    product: Framed
    image: NDArray[np.uint8]
    """Height x width x 3, at the size to generate."""
    mask: NDArray[np.float32]
    """Height x width, 1 where the background is wanted."""
    prompt: str
    negative_prompt: str
    seeds: tuple[int, ...]
    """One per variant."""
    settings: Settings
    reseeds: int
    gates: PictureGates

    @property
    def size(self) -> tuple[int, int]:
        """Width and height to generate."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, slots=True)
class Generated:
    """One variant's background."""

    rgb: NDArray[np.uint8]
    seed: int
    attempts: int
    reason: str | None
    """Why it is still wrong after every try; None when it is not."""


class Saliency(Protocol):
    """A network that says how much each part of a picture stands out; `U2Net` is one. `run` is called from many threads."""

    def load(self, threads: int) -> None:
        """Read the weights. Raises `ModelMissingError`, `ModelCorruptError`."""
        ...

    def run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the map of one input (3 x 320 x 320), 320 x 320, 0 to 1."""
        ...


class DiffusionModel:
    """Satisfies `workers.stage.Model`: pictures generated in batches around the product.

    `saliency` looks for products that grew; None takes the starter model of segmentation. `max_batch` is the operator's limit, where there is one.
    """

    name = "diffusion"

    def __init__(
        self,
        section: DiffusionBackground,
        models_dir: Path,
        saliency: Saliency | None = None,
        /,
        *,
        max_bytes: int,
        max_pixels: int,
        max_batch: int | None = None,
    ) -> None:
        self._section = section
        self._models_dir = models_dir
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        self._engine: Engine | KandinskyEngine | None = None
        self._on_gpu = False
        self._most = max_batch
        self._saliency: Saliency = saliency or U2Net(models_dir)

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the photo and its cut-out."""
        del recipe
        return ("source", "cutout")

    @property
    def max_batch(self) -> int | None:
        """Fill a GPU; leave a CPU to the settings. Where memory is the limit, the batcher finds it."""
        if not self._on_gpu or self._engine is None or self._section.gpu_batch is None:
            return None
        chosen = settings(self._section, self._engine.native).resolution
        # Photos of their own size are commonly of a thousand pixels and more.
        side = 2 * _GPU_SIDE if chosen == "native" else max(chosen, _GPU_SIDE)
        return max(1, self._section.gpu_batch * _GPU_SIDE**2 // side**2)

    def load(self, device: str, threads: int) -> None:
        """Read the pipeline and generate one grey square. Raises `ModelMissingError`, `ModelCorruptError`, `UsageError`."""
        import torch  # noqa: PLC0415 - heavy

        from workers.devices import device_for, dtype_for  # noqa: PLC0415 - imports torch
        from workers.inpainting.diffusion.engine import load_engine  # noqa: PLC0415 - imports diffusers

        torch.set_num_threads(threads)
        cv2.setNumThreads(1)  # `prepare` and `finish` already run in many threads
        folder, prior = self._folders()
        place = device_for(device)
        self._on_gpu = place.type == "cuda"
        self._saliency.load(threads)
        lora = locate(self._section.lora, self._models_dir) if self._section.lora else None
        dtype = dtype_for(self._section.precision, place)
        self._engine = load_engine(folder, prior, self._section, place, dtype, lora=lora)
        chosen = settings(self._section, self._engine.native)
        side = bucket(self._engine.native, self._engine.native, chosen.resolution)
        grey = np.full((side[1], side[0], 3), 127, np.uint8)
        request = Request(grey, np.ones(grey.shape[:2], np.float32), "warm-up", "", 0)
        brief = replace(chosen, steps=2, strength=1.0)
        engine = self._engine
        warm_up(
            lambda count: engine.generate([request] * count, brief),
            compiled=self._section.compile,
            limits=(self._most, self.max_batch),
        )

    def prepare(self, work: Work) -> Prepared:
        """Decode, frame, and make what is generated from. Raises `PictureError`, `NoProductError`."""
        section = _section(work.recipe)
        product = frame(work, **self._limits)
        chosen = settings(section, self._engine.native if self._engine else 0)
        height, width = product.alpha.shape
        size = bucket(width, height, chosen.resolution)
        seed = section.seed if section.seed is not None else int(work.fields.get("seed", work.seed))
        return Prepared(
            product=product,
            image=_around(product, size, framed=work.recipe.picture.size is not None),
            mask=background_mask(product.alpha, size, section.mask_grow, section.mask_blur),
            prompt=prompt_for(section, work.fields),
            negative_prompt=section.negative_prompt,
            seeds=tuple((seed + variant * _VARIANT) % _MAX_SEED for variant in range(section.variants)),
            settings=chosen,
            reseeds=section.reseeds,
            gates=work.recipe.picture.gates,
        )

    def bucket(self, item: Prepared) -> Hashable:
        """Share a batch among pictures of one size and one way of generating."""
        return item.size, item.settings, len(item.seeds), item.reseeds

    def infer(self, batch: Sequence[Prepared]) -> list[list[Generated]]:
        """Generate every variant of every item; what comes out black, flat or blanked is tried again with another seed."""
        # Variant by variant, so that a batch is never larger than the one that was asked for.
        variants = [self._variant(batch, number) for number in range(len(batch[0].seeds))]
        return [list(pictures) for pictures in zip(*variants, strict=True)]

    def _variant(self, batch: Sequence[Prepared], number: int) -> list[Generated]:
        assert self._engine is not None  # noqa: S101 - for the type checker; the worker loads before it runs
        done: dict[int, Generated] = {}
        waiting = list(range(len(batch)))
        for attempt in range(batch[0].reseeds + 1):
            seeds = {i: (batch[i].seeds[number] + attempt * _RESEED) % _MAX_SEED for i in waiting}
            requests = [
                Request(batch[i].image, batch[i].mask, batch[i].prompt, batch[i].negative_prompt, seeds[i])
                for i in waiting
            ]
            pictures = self._engine.generate(requests, batch[0].settings)
            for i, picture in zip(waiting, pictures, strict=True):
                done[i] = Generated(picture.rgb, seeds[i], attempt + 1, fault(picture, batch[i].gates))
            waiting = [i for i in waiting if done[i].reason]
            if not waiting:
                break
        return [done[i] for i in range(len(batch))]

    def finish(self, work: Work, item: Prepared, output: list[Generated]) -> Result:
        """Set the product on each background, judge, encode."""
        section = _section(work.recipe)
        artifacts, reasons, measures = {}, [], []
        for number, variant in enumerate(output, 1):
            height, width = item.product.alpha.shape
            background = _resized(variant.rgb, (width, height))
            picture, doubts, measured = finish_picture(work.recipe, item.product, background, generated=True)
            artifacts["image" if number == 1 else f"image_{number}"] = picture
            growth = None if section.max_growth is None else self._growth(variant.rgb, item.mask)
            if variant.reason:
                reasons.append(variant.reason)
            if growth is not None and growth > (section.max_growth or 0):
                reasons.append("picture_overgrown")
            reasons += doubts
            measures.append({**measured, "seed": variant.seed, "attempts": variant.attempts, "growth": growth})
        recorded: dict[str, Any] = {**measures[0], "generated": list(item.size), "steps": item.settings.steps}
        if len(measures) > 1:
            kept = ("seed", "attempts", "growth", "preserved_max_difference")
            recorded["variants"] = [{name: found[name] for name in kept} for found in measures[1:]]
        return Result(artifacts, tuple(dict.fromkeys(reasons)), recorded)

    def _growth(self, rgb: NDArray[np.uint8], wanted: NDArray[np.float32]) -> float:
        """Return by how much of its area the product of a generated picture exceeds its mask, 0 to 1 and more."""
        try:
            found = normalize(self._saliency.run(to_tensor(Image.fromarray(rgb)))) > 0.5  # noqa: PLR2004 - the model's own cut
        except NoProductError:
            return 0.0
        return growth(found, wanted)

    def _folders(self) -> tuple[Path, Path | None]:
        weights = self._section.weights
        folder = locate(weights, self._models_dir)
        if weights == "kandinsky-2.2":
            return folder, locate("kandinsky-2.2-prior", self._models_dir)
        beside = folder / "prior"
        return folder, beside if beside.is_dir() else None


def background_mask(alpha: NDArray[np.uint8], size: tuple[int, int], grow: float, blur: float) -> NDArray[np.float32]:
    """Return where the background is wanted, at `size` (width, height), 0 to 1: all but the product, grown and softened by pixels."""
    product = (cv2.resize(alpha, size, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)  # noqa: PLR2004 - half
    if grow >= 1:
        side = 2 * round(grow) + 1
        product = cv2.dilate(product, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))).astype(np.uint8)
    wanted = (1 - product).astype(np.float32)
    if blur > 0:
        wanted = cv2.GaussianBlur(wanted, (0, 0), blur / 2).astype(np.float32)
    return wanted


def growth(found: NDArray[np.bool_], wanted: NDArray[np.float32]) -> float:
    """Return the part of the product's area that `found` (320 x 320) has beyond it; `wanted` is the background's mask."""
    product = cv2.resize(1 - wanted, (SIDE, SIDE), interpolation=cv2.INTER_AREA) > 0.5  # noqa: PLR2004 - half
    side = 2 * max(1, round(_SLACK * SIDE)) + 1
    near = cv2.dilate(product.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)
    return round(float((found & ~near).sum() / max(1, int(product.sum()))), 4)


def fault(picture: Picture, gates: PictureGates) -> str | None:
    """Return why a generated picture is no background: `picture_unsafe`, `picture_black`, `picture_flat`; None when it is one."""
    if picture.blanked:
        return "picture_unsafe"
    means, deviations = cv2.meanStdDev(picture.rgb)
    if float(means.mean()) < gates.min_brightness:
        return "picture_black"
    return "picture_flat" if float(deviations.mean()) < gates.min_contrast else None


def _around(product: Framed, size: tuple[int, int], *, framed: bool) -> NDArray[np.uint8]:
    """Return the picture to start from at `size`: the photo, or the product on a grey canvas where it was set in another frame."""
    rgb = product.source
    if framed:
        share = product.alpha[..., None].astype(np.float32) / 255
        rgb = np.rint(product.source * share + _CANVAS * (1 - share)).astype(np.uint8)
    return _resized(rgb, size)


def _resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale to `size` (width, height): averaged when it gets smaller, smoothed when it gets larger."""
    smaller = size[0] * size[1] < rgb.shape[0] * rgb.shape[1]
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC).astype(np.uint8)


def _section(recipe: Recipe) -> DiffusionBackground:
    section = recipe.background
    if not isinstance(section, DiffusionBackground):
        raise TypeError(f"the item was sent to 'diffusion' with a recipe for {section.model!r}")
    return section
