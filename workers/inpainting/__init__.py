"""Backgrounds: what stands behind the product, and the finished picture."""

from __future__ import annotations

from workers.inpainting.backgrounds import ColorModel, ImageModel, StudioModel, TransparentModel

BACKGROUNDS = {model.name: model for model in (StudioModel, ColorModel, ImageModel, TransparentModel)}
"""Model classes by the name a recipe calls them."""

__all__ = ["BACKGROUNDS", "ColorModel", "ImageModel", "StudioModel", "TransparentModel"]
