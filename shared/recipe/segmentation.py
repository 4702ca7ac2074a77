"""The recipe's choices of segmentation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shared.keys import MAX_KEY_BYTES
from shared.recipe.section import Fraction, ModelSection, Precision, Section, Weights


class MaskGates(Section):
    """When a mask is doubted (`needs_review`) rather than trusted. Fractions are of the photo's area or border."""

    min_area: Fraction = 0.01
    max_area: Fraction = 0.95
    max_border: Fraction = 0.35
    """Largest part of the photo's border that the product may touch."""
    max_fragments: int = Field(default=6, ge=1)
    min_stability: Fraction = 0.85
    """Smallest overlap (IoU) of the masks cut at a low and at a high threshold."""
    max_faint: Fraction = 0.05
    """Largest part of the outline that may run where the photo shows no edge, as on a white product before white."""


class SaliencySegmentation(ModelSection):
    """U²-Net-p: the most salient object is the product. Starter model, no download, CPU."""

    model: Literal["saliency"] = "saliency"
    use_alpha: bool = True
    """A photo that already has a meaningful alpha channel is cut out by it."""
    refine: bool = True
    """Make the edges follow the picture at full resolution."""
    gates: MaskGates = MaskGates()


class SuppliedSegmentation(ModelSection):
    """No model: the mask is the photo's alpha channel, or a picture beside the photo."""

    item_fields: ClassVar[tuple[str, ...]] = ("mask", "mask_etag")

    model: Literal["none"]
    mask: Literal["alpha", "supplied"] = "alpha"
    mask_key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_BYTES)] = "{stem}.mask.png"
    """Where a supplied mask lies; `{key}` and `{stem}` (the key without its extension) are filled in."""
    gates: MaskGates = MaskGates()


class SamSegmentation(ModelSection):
    """Segment Anything: every mask of the photo is found, and the product's chosen among them."""

    loads: ClassVar[tuple[str, ...]] = ("weights", "precision", "prior", "compile")

    item_fields: ClassVar[tuple[str, ...]] = ("points", "box")

    gpu_batch: ClassVar[int | None] = 16
    # A photo is 6 TFLOP in the largest encoder: sixteen are work enough for any GPU, and more would only make the first one wait.

    model: Literal["sam"]
    weights: Weights = "sam-vit-h"
    """`sam-vit-h`, `sam-vit-l`, `sam-vit-b`, or a checkpoint of one of the three in segment-anything's own layout (`.pth`, `.safetensors`).

    A checkpoint is given by its path, its https address, or where it lies on the hub (`owner/name@revision`, with `:file` where there are several).
    """
    precision: Precision = "auto"
    compile: bool = False
    """Compile the image encoder (`torch.compile`): a slow start, then faster."""
    use_alpha: bool = True
    """A photo that already has a meaningful alpha channel is cut out by it, unless the manifest gives points or a box."""
    points_per_side: int = Field(default=16, ge=1, le=64)
    """The grid of prompts; 16 finds one product, 32 is four times the work."""
    crop_layers: int = Field(default=0, ge=0, le=2)
    """Further passes over 4 and 16 overlapping crops, for small products in large photos."""
    min_predicted_iou: Fraction = 0.88
    min_stability: Fraction = 0.95
    max_overlap: Fraction = 0.7
    """Boxes that overlap more (IoU) are one mask."""
    choice: Literal["product", "seed"] = "product"
    """`seed` takes the original script's rule: the first or the second mask is the background."""
    prior: bool = True
    """Let the saliency model have a say in the choice; it runs on the CPU, 0.4 s a photo on one core."""
    min_lead: Fraction = 0.05
    """Smallest lead of the chosen mask's score over the runner-up's; less needs review, as does a choice that neither prior nor backdrop supports."""
    refine: bool = True
    """Make the edges follow the picture at full resolution."""
    gates: MaskGates = MaskGates()


Segmentation = Annotated[SaliencySegmentation | SuppliedSegmentation | SamSegmentation, Field(discriminator="model")]
