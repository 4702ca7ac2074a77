"""The recipe: which models make a job's catalogue, and with what settings. Immutable once a job has begun."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from shared.errors import RecipeError
from shared.recipe.background import Background, StudioBackground
from shared.recipe.caption import Caption, LabelsCaption
from shared.recipe.picture import Picture
from shared.recipe.section import Section
from shared.recipe.segmentation import SaliencySegmentation, Segmentation

if TYPE_CHECKING:
    from pathlib import Path


class Recipe(Section):
    """One job's settings. A section's `model` chooses which other fields it takes."""

    segmentation: Segmentation = SaliencySegmentation()
    background: Background = StudioBackground()
    picture: Picture = Picture()
    caption: Caption = LabelsCaption()

    @model_validator(mode="before")
    @classmethod
    def _default_models(cls, data: Any) -> Any:
        """Let a section leave out its `model`: the starter one is meant."""
        if not isinstance(data, dict):
            return data
        starters = {"segmentation": "saliency", "background": "studio", "caption": "labels"}
        named = {
            name: {"model": starter, **data[name]}
            for name, starter in starters.items()
            if isinstance(data.get(name), dict)
        }
        return {**data, **named}

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
