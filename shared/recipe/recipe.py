"""The recipe: which models make a job's catalogue, and with what settings. Immutable once a job has begun."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from shared.errors import RecipeError
from shared.recipe.background import Background, StudioBackground
from shared.recipe.caption import Caption, LabelsCaption
from shared.recipe.picture import Picture
from shared.recipe.section import Section
from shared.recipe.segmentation import SaliencySegmentation, Segmentation
from shared.wording import nearest, one_of, place, sentence

if TYPE_CHECKING:
    from pathlib import Path


MAX_BYTES = 100_000
"""Of a recipe's file; one with every field written out has three thousand."""
MAX_VALUES = 10_000
"""Values in a recipe, those that YAML's aliases repeat counted each time: a few lines of aliases can stand for billions."""


class _DoubledKeyError(yaml.MarkedYAMLError):
    """A mapping names a field twice; YAML's own reader would take the last one without a word."""


class _Reader(yaml.SafeLoader):
    """Reads YAML whose mappings name each field once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Look at a mapping as it is written, before `<<` merges others into it."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused later, as no field of ours
            if key.value in lines:
                said = f"{key.value} stands here again, after line {lines[key.value]}: keep one of them"
                raise _DoubledKeyError(problem=said, problem_mark=key.start_mark)
            lines[key.value] = line
        return node


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
            raise RecipeError(f"{origin} is empty: name a section, or give no recipe for the starter one")
        if not isinstance(data, dict):
            msg = f"{origin}: expected a mapping with the keys {', '.join(cls.model_fields)}"
            raise RecipeError(msg)
        if _more_values(data, MAX_VALUES):
            raise RecipeError(f"{origin}: more than {MAX_VALUES:,} values: is it a recipe?")
        try:
            # Python mode would let YAML's dates and such through; a recipe is JSON in another coat.
            return cls.model_validate_json(json.dumps(data), strict=False)
        except ValidationError as error:
            raise RecipeError(f"{origin}: " + "; ".join(_explain(e) for e in error.errors())) from None
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"{origin}: only text, numbers, lists and mappings may stand in a recipe ({error})"
            raise RecipeError(msg) from None

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a YAML or JSON file (JSON is YAML). Raises `RecipeError`."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise RecipeError(f"the recipe {path} has more than {MAX_BYTES:,} bytes: is it a recipe?")
            text = data.decode("utf-8-sig").replace("\r\n", "\n")
        except FileNotFoundError:
            raise RecipeError(f"no recipe file {path}: correct the path") from None
        except UnicodeDecodeError:
            raise RecipeError(f"the recipe {path} is not text: give a YAML or JSON file in UTF-8") from None
        except OSError as error:
            raise RecipeError(f"cannot read the recipe {path}: {(error.strerror or str(error)).lower()}") from None
        try:
            parsed = yaml.load(text, _Reader)  # noqa: S506 - a safe loader
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise RecipeError(f"{path}{_bare_color(text) or _not_yaml(error)}") from None
        background = parsed.get("background") if isinstance(parsed, dict) else None
        if isinstance(background, dict) and background.get("color", "") is None and (said := _bare_color(text)):
            raise RecipeError(f"{path}{said}")
        return cls.from_mapping(parsed, origin=str(path))

    def to_json(self) -> bytes:
        """Write the whole recipe, defaults included, so that a later release's defaults do not change a job."""
        return self.model_dump_json(indent=2).encode()


def _more_values(data: Any, limit: int) -> bool:
    waiting, count = [data], 0
    while waiting and count <= limit:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return count > limit


def _not_yaml(error: Exception) -> str:
    where, why = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    at = f", line {where.line + 1}" if where else ""
    if isinstance(error, _DoubledKeyError):
        return f"{at}: {why}"
    return f"{at}: not valid YAML or JSON{f' ({why})' if why else ''}"


def _bare_color(text: str) -> str:
    """Say where a colour stands without quotes: to YAML it is a comment, and what follows it on the line is lost."""
    bare = re.search(r"""\bcolor["']?:[ \t]+(#[0-9a-fA-F]{3,8})\b""", text)
    if not bare:
        return ""
    line = text[: bare.start()].count("\n") + 1
    return f', line {line}: put the colour in quotes: color: "{bare[1]}"'


def _explain(error: Any) -> str:
    """Say what is wrong in a recipe: the field as the user wrote it, what is allowed there, and the nearest name."""
    location, section = _place(error["loc"])
    path = place(location)
    kind = error["type"]
    if kind == "extra_forbidden":
        allowed = [*(section.model_fields if section else ())]
        models = get_args(section.model_fields["model"].annotation) if section and "model" in allowed else ()
        of = f" of the model {models[0]}" if models else ""
        return f"{path}: unknown field{of}{nearest(location[-1], allowed)}; allowed: {', '.join(allowed)}"
    if kind == "union_tag_invalid":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected_tags"])
        return f"{path}.model {one_of(error['ctx']['tag'], choices)}"
    if kind == "union_tag_not_found":
        return f"{path}.model is missing"
    return sentence(path, error)


def _place(location: tuple[Any, ...]) -> tuple[list[int | str], type[BaseModel] | None]:
    """Return the path as the user wrote it, without the models that pydantic puts in it, and the section its last step is in."""
    path: list[int | str] = []
    section: type[BaseModel] | None = Recipe
    options: list[type[BaseModel]] = []
    for step in location:
        chosen = [option for option in options if step in get_args(option.model_fields["model"].annotation)]
        if chosen:
            section, options = chosen[0], []
            continue
        if step == "[key]":  # of a mapping; the key itself came before
            continue
        path.append(step)
        field = section.model_fields.get(str(step)) if section else None
        if field is None:
            continue
        kinds = [field.annotation, *get_args(field.annotation)]
        parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(parts) == 1:
            section = parts[0]
        else:
            options = parts
    return path, section
