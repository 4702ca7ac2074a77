"""The models that each stage offers, by the name a recipe calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from shared.recipe import DiffusionBackground

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.recipe import ModelSection
    from shared.settings import Settings
    from workers.stage import Model


def make_model(stage: StageName, section: ModelSection, settings: Settings) -> Model[Any, Any]:
    """Build the model that a section of the recipe chooses, without loading it. Imports only what that stage needs."""
    name = section.model
    limits = {"max_bytes": settings.max_bytes, "max_pixels": settings.max_pixels}
    # ruff: noqa: PLC0415 - a worker imports its own stage's libraries and no other's
    if stage == "segmentation":
        if name == "saliency":
            from workers.segmentation.saliency import SaliencyModel

            return SaliencyModel(settings.models_dir, **limits)
        if name == "none":
            from workers.segmentation.supplied import SuppliedModel

            return SuppliedModel(**limits)
    elif stage == "inpainting":
        from workers.inpainting import BACKGROUNDS

        if isinstance(section, DiffusionBackground):
            from workers.inpainting.diffusion.model import DiffusionModel

            return DiffusionModel(section, settings.models_dir, **limits)
        if name in BACKGROUNDS:
            return BACKGROUNDS[name](**limits)
    elif name == "labels":
        from workers.captioning.labels import LabelsModel

        return LabelsModel(settings.models_dir, max_pixels=settings.max_pixels)
    elif name == "none":
        from workers.captioning.none import NoCaptionModel

        return NoCaptionModel()
    msg = f"this worker knows no {stage} model {name!r}: run workers and producer of one release"
    raise UsageError(msg)
