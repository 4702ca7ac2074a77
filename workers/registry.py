"""The models that each stage offers, by the name a recipe calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from shared.recipe import Blip2Caption, DiffusionBackground, SamSegmentation, VlmCaption

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.recipe import ModelSection
    from shared.settings import Settings
    from workers.stage import Model

# ruff: noqa: PLC0415 - a worker imports its own stage's libraries and no other's


def make_model(stage: StageName, section: ModelSection, settings: Settings) -> Model[Any, Any]:
    """Build the model that a section of the recipe chooses, without loading it. Raises `UsageError`."""
    make = {"segmentation": _segmentation, "inpainting": _inpainting, "captioning": _captioning}[stage]
    model = make(section, settings, {"max_bytes": settings.max_bytes, "max_pixels": settings.max_pixels})
    if model is None:
        msg = f"this worker knows no {stage} model {section.model!r}: run workers and producer of one release"
        raise UsageError(msg)
    return model


def _segmentation(section: ModelSection, settings: Settings, limits: dict[str, int]) -> Model[Any, Any] | None:
    if isinstance(section, SamSegmentation):
        from workers.segmentation.sam.model import SamModel

        return SamModel(section, settings.models_dir, **limits, max_batch=settings.max_batch)
    if section.model == "saliency":
        from workers.segmentation.saliency import SaliencyModel

        return SaliencyModel(settings.models_dir, **limits)
    if section.model == "none":
        from workers.segmentation.supplied import SuppliedModel

        return SuppliedModel(**limits)
    return None


def _inpainting(section: ModelSection, settings: Settings, limits: dict[str, int]) -> Model[Any, Any] | None:
    if isinstance(section, DiffusionBackground):
        from workers.inpainting.diffusion.model import DiffusionModel

        return DiffusionModel(section, settings.models_dir, **limits, max_batch=settings.max_batch)
    from workers.inpainting import BACKGROUNDS

    return BACKGROUNDS[section.model](**limits) if section.model in BACKGROUNDS else None


def _captioning(section: ModelSection, settings: Settings, limits: dict[str, int]) -> Model[Any, Any] | None:
    if isinstance(section, Blip2Caption):
        from workers.captioning.blip2 import Blip2Model

        return Blip2Model(section, settings.models_dir, **limits)
    if isinstance(section, VlmCaption):
        from workers.captioning.vlm import VlmModel

        return VlmModel(section, settings.models_dir, **limits)
    if section.model == "labels":
        from workers.captioning.labels import LabelsModel

        return LabelsModel(settings.models_dir, max_pixels=settings.max_pixels)
    if section.model == "none":
        from workers.captioning.none import NoCaptionModel

        return NoCaptionModel()
    return None
