"""The recipe: which models make a job's catalogue, and with what settings. Immutable once a job has begun."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

HexColor = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$", to_lower=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Language = Literal["en", "ru"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaskGates(_Section):
    """When a mask is doubted (`needs_review`) rather than trusted. Fractions are of the photo's area or border."""

    min_area: Fraction = 0.01
    max_area: Fraction = 0.95
    max_border: Fraction = 0.35
    """Largest part of the photo's border that the product may touch."""
    max_fragments: int = Field(default=6, ge=1)
    min_stability: Fraction = 0.85
    """Smallest overlap (IoU) of the masks cut at a low and at a high threshold."""


class SaliencySegmentation(_Section):
    """U²-Net-p: the most salient object is the product. Starter model, no download, CPU."""

    model: Literal["saliency"] = "saliency"
    use_alpha: bool = True
    """A photo that already has a meaningful alpha channel is cut out by it."""
    refine: bool = True
    """Make the edges follow the picture at full resolution."""
    gates: MaskGates = MaskGates()


class SuppliedSegmentation(_Section):
    """No model: the mask is the photo's alpha channel, or a picture beside the photo."""

    model: Literal["none"]
    mask: Literal["alpha", "supplied"] = "alpha"
    mask_key: str = "{stem}.mask.png"
    """Where a supplied mask lies; `{key}` and `{stem}` (the key without its extension) are filled in."""
    gates: MaskGates = MaskGates()


class StudioBackground(_Section):
    """A neutral backdrop that suits the product's colours, with a soft contact shadow."""

    model: Literal["studio"] = "studio"
    color: HexColor | None = None
    """The backdrop's base colour; None chooses one from the product."""
    shadow: Fraction = 0.45
    """Darkness of the contact shadow."""


class ColorBackground(_Section):
    """One plain colour."""

    model: Literal["color"]
    color: HexColor = "#ffffff"
    shadow: Fraction = 0.0


class ImageBackground(_Section):
    """A ready picture, scaled to cover the frame."""

    model: Literal["image"]
    image: str
    """A file on the submitting machine, or a key of the output storage (`backgrounds/…`) once submitted."""
    shadow: Fraction = 0.0


class TransparentBackground(_Section):
    """No background: needs `picture.format: png` or `webp`."""

    model: Literal["transparent"]


class PictureGates(_Section):
    """When a finished picture is doubted. Levels run from 0 to 255."""

    min_contrast: float = Field(default=2.0, ge=0)
    """Smallest standard deviation of the whole picture; less is a flat frame."""
    min_brightness: float = Field(default=4.0, ge=0)
    """Smallest mean; less is a black frame."""


class Picture(_Section):
    """The finished picture: its frame and its file."""

    format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG and WebP only."""
    size: Annotated[tuple[int, int], Field()] | None = None
    """Width and height in pixels; None keeps the photo's own frame."""
    padding: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Free margin on each side, as a part of the frame's shorter side. Only with `size`."""
    align: Literal["center", "bottom"] = "center"
    """Where the product stands in the frame. Only with `size`."""
    feather: float = Field(default=2.0, ge=0, le=20)
    """Pixels at the mask's edge over which product and background mix."""
    gates: PictureGates = PictureGates()

    @model_validator(mode="after")
    def _size_is_possible(self) -> Picture:
        if self.size is not None and not all(64 <= side <= 8192 for side in self.size):  # noqa: PLR2004 - limits
            msg = "size must be two numbers of pixels between 64 and 8192"
            raise ValueError(msg)
        return self


class LabelsCaption(_Section):
    """ImageNet label and dominant colour in sentences from our own table. Starter model, no download, CPU."""

    model: Literal["labels"] = "labels"
    languages: tuple[Language, ...] = ("en", "ru")
    min_confidence: Fraction = 0.5
    """Below it the caption says only the colour, and the item needs review. At half, the name is likelier than all others together."""


class NoCaption(_Section):
    """No caption; the item's record is still written."""

    model: Literal["none"]


Segmentation = Annotated[SaliencySegmentation | SuppliedSegmentation, Field(discriminator="model")]
Background = Annotated[
    StudioBackground | ColorBackground | ImageBackground | TransparentBackground, Field(discriminator="model")
]
Caption = Annotated[LabelsCaption | NoCaption, Field(discriminator="model")]


class Recipe(_Section):
    """One job's settings. A section's `model` chooses which other fields it takes."""

    segmentation: Segmentation = SaliencySegmentation()
    background: Background = StudioBackground()
    picture: Picture = Picture()
    caption: Caption = LabelsCaption()

    @model_validator(mode="after")
    def _transparency_needs_alpha(self) -> Recipe:
        if self.background.model == "transparent" and self.picture.format == "jpeg":
            msg = "background.model 'transparent' needs picture.format 'png' or 'webp'"
            raise ValueError(msg)
        return self

    @classmethod
    def from_mapping(cls, data: Any, *, origin: str = "recipe") -> Recipe:
        """Check a parsed recipe. Raises `RecipeError` naming each wrong field with what is allowed there."""
        if data is None:
            return cls()
        if not isinstance(data, dict):
            msg = f"{origin}: expected a mapping with the keys {', '.join(cls.model_fields)}"
            raise RecipeError(msg)
        try:
            # Python mode would let YAML's dates and such through; a recipe is JSON in another coat.
            return cls.model_validate_json(json.dumps(data), strict=False)
        except ValidationError as error:
            raise RecipeError(f"{origin}: " + "; ".join(_explain(e, cls) for e in error.errors())) from None
        except (TypeError, ValueError) as error:
            msg = f"{origin}: only text, numbers, lists and mappings may stand in a recipe ({error})"
            raise RecipeError(msg) from None

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a YAML or JSON file (JSON is YAML). Raises `RecipeError`."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"cannot read the recipe {path}: {error}"
            raise RecipeError(msg) from None
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            where = getattr(error, "problem_mark", None)
            at = f", line {where.line + 1}" if where else ""
            msg = f"{path}{at}: not valid YAML or JSON"
            raise RecipeError(msg) from None
        return cls.from_mapping(data, origin=str(path))

    def to_json(self) -> bytes:
        """Write the whole recipe, defaults included, so that a later release's defaults do not change a job."""
        return self.model_dump_json(indent=2).encode()


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """List the allowed field names of the section at `path`; unions are entered by their discriminator, which pydantic puts in the path."""
    import typing  # noqa: PLC0415 - only on the error path

    here: Any = model
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[step].annotation if step in here.model_fields else None
        options = [o for o in typing.get_args(here) if isinstance(o, type) and issubclass(o, BaseModel)]
        for option in options:
            if step in typing.get_args(option.model_fields["model"].annotation) or len(options) == 1:
                here = option
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _explain(error: Any, model: type[BaseModel]) -> str:
    location = error["loc"]
    path = ".".join(str(part) for part in location) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, location[:-1])
        return f"{path}: unknown field; allowed: {', '.join(allowed)}" if allowed else f"{path}: unknown field"
    if error["type"] == "union_tag_not_found":
        return f"{path}: `model` is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]} (got {_shown(error.get('input'))})"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"  # noqa: PLR2004 - one terminal line
