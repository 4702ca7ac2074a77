"""What each stage of a recipe writes for an item, and under which names: the one place that knows the chain of fingerprints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.fingerprints import fingerprint
from shared.keys import STAGES, StageName, output_key
from shared.models import weights_revision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.recipe import ModelSection, Recipe, Section

REVISIONS: Mapping[StageName, Mapping[str, str]] = {
    "segmentation": {"saliency": "u2netp-1.1", "sam": "1.1", "none": "1"},
    "inpainting": {"studio": "2", "color": "2", "image": "2", "transparent": "1", "diffusion": "1"},
    "captioning": {"labels": "efficientnet-lite0-1", "blip2": "1", "vlm": "1", "none": "1"},
}
"""Raise a model's revision whenever the same photo and settings could give other bytes: old outputs are then no longer taken for done."""

_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}


def sections(recipe: Recipe, stage: StageName) -> dict[str, Section]:
    """Return the parts of the recipe that decide a stage's output."""
    if stage == "segmentation":
        return {"segmentation": recipe.segmentation}
    if stage == "inpainting":
        return {"background": recipe.background, "picture": recipe.picture}
    return {"caption": recipe.caption}


def chosen(recipe: Recipe, stage: StageName) -> ModelSection:
    """Return the section of the recipe that chooses a stage's model."""
    return {"segmentation": recipe.segmentation, "inpainting": recipe.background, "captioning": recipe.caption}[stage]


def _revision(stage: StageName, section: ModelSection) -> str:
    """Name the code's revision and, where the weights are a choice, theirs."""
    own = REVISIONS[stage][section.model]
    named = [weights for field in ("weights", "lora") if (weights := getattr(section, field, None))]
    return " ".join(filter(None, [own, *map(weights_revision, named)]))


def picture_kinds(recipe: Recipe) -> list[str]:
    """Name the pictures of an item: `image`, and `image_2` onwards where the recipe asks for variants."""
    count = getattr(recipe.background, "variants", 1)
    return ["image", *(f"image_{number}" for number in range(2, count + 1))]


def _named(key: str, kind: str, mark: str, extension: str) -> str:
    name, _, variant = kind.partition("_")
    # Variants are pictures of one name and different marks, each as if it were the only one.
    return output_key(key, name, fingerprint({"of": mark, "variant": variant}) if variant else mark, extension)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The names of everything one item ends with."""

    fingerprints: Mapping[StageName, str]
    keys: Mapping[StageName, Mapping[str, str]]
    """By stage, then by kind, in the order of writing: a stage is done when its last one exists."""

    def marker(self, stage: StageName) -> str:
        """Return the key whose existence means that the stage is done."""
        return list(self.keys[stage].values())[-1]

    def key(self, kind: str) -> str:
        """Return the key of one kind of output."""
        return next(kinds[kind] for kinds in self.keys.values() if kind in kinds)


class Plan:
    """A recipe made concrete. Cheap to ask: the part that does not depend on the item is worked out once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._parts: dict[StageName, dict[str, Any]] = {
            stage: {
                "stage": stage,
                "model": chosen(recipe, stage).model,
                "revision": _revision(stage, chosen(recipe, stage)),
                "settings": {name: part.model_dump(mode="json") for name, part in sections(recipe, stage).items()},
            }
            for stage in STAGES
        }
        self._recipe_fingerprints = {stage: fingerprint(parts) for stage, parts in self._parts.items()}

    def revision(self, stage: StageName) -> str:
        """Return the revision of the stage's model."""
        return str(self._parts[stage]["revision"])

    def outputs(self, key: str, etag: str, fields: Mapping[str, Any] | None = None) -> Outputs:
        """Name every output of the source `key` with content `etag` and the `fields` that a manifest gave it.

        Only fields that a stage's model looks at change the names of its outputs.
        """
        fingerprints: dict[StageName, str] = {}
        before = ""
        for stage in STAGES:
            parts: dict[str, Any] = {"etag": etag, "recipe": self._recipe_fingerprints[stage], "before": before}
            if seen := {
                name: fields[name] for name in chosen(self.recipe, stage).item_fields if fields and name in fields
            }:
                parts["fields"] = seen
            before = fingerprint(parts)
            fingerprints[stage] = before
        extension = _EXTENSIONS[self.recipe.picture.format]
        kinds: dict[StageName, tuple[tuple[str, str], ...]] = {
            "segmentation": (("cutout", "png"), ("mask", "png")),
            # The first picture comes last: that it exists says that all do.
            "inpainting": tuple((kind, extension) for kind in reversed(picture_kinds(self.recipe))),
            "captioning": (("caption", "json"),),
        }
        return Outputs(
            fingerprints,
            {
                stage: {kind: _named(key, kind, fingerprints[stage], ext) for kind, ext in kinds[stage]}
                for stage in STAGES
            },
        )
