"""The recipe, one file per section."""

from shared.recipe.background import (
    LCM_LORAS,
    ColorBackground,
    DiffusionBackground,
    ImageBackground,
    StudioBackground,
    TransparentBackground,
)
from shared.recipe.caption import Blip2Caption, LabelsCaption, Language, NoCaption, VlmCaption
from shared.recipe.picture import Picture, PictureGates
from shared.recipe.recipe import Recipe
from shared.recipe.section import HexColor, ModelSection, Section
from shared.recipe.segmentation import MaskGates, SaliencySegmentation, SamSegmentation, SuppliedSegmentation

__all__ = [
    "LCM_LORAS",
    "Blip2Caption",
    "ColorBackground",
    "DiffusionBackground",
    "HexColor",
    "ImageBackground",
    "LabelsCaption",
    "Language",
    "MaskGates",
    "ModelSection",
    "NoCaption",
    "Picture",
    "PictureGates",
    "Recipe",
    "SaliencySegmentation",
    "SamSegmentation",
    "Section",
    "StudioBackground",
    "SuppliedSegmentation",
    "TransparentBackground",
    "VlmCaption",
]
