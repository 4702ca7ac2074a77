"""What an item's record says, in words: names, units and rounded numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Facts = dict[str, dict[str, str]]
"""Text by label, by group."""


def percent(value: float) -> str:
    """Write a part of one: `0.3316` is 33.2 %."""
    return f"{100 * value:.3g}\u00a0%" if abs(value) < 1 else f"{100 * value:.0f}\u00a0%"


def plain(value: Any) -> str:
    """Write a value that nothing is known of."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - three digits
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(plain, value)))
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {text}" for name, text in ((n, plain(v)) for n, v in value.items()) if text)
    return str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _levels(value: float) -> str:
    return f"{value:.3g} of 255"


def _pixels(size: Any) -> str:
    return " × ".join(map(str, size)) + " px" if isinstance(size, (list, tuple)) else plain(size)  # noqa: RUF001 - a size


def _whole(value: Any) -> str:
    return str(value)  # a seed is typed again, not counted


def _difference(value: float) -> str:
    return f"by up to {_levels(value)} levels" if value else "not at all"


def _variants(found: Any) -> str:
    return f"seeds {', '.join(str(variant['seed']) for variant in found)}"


_WAYS = {
    "model": "the model",
    "alpha": "the photo's transparency",
    "supplied": "a mask beside the photo",
    "prompt": "the manifest's points or box",
    "product": "the masks' scores",
    "product with prior": "the masks' scores and what stands out",
    "seed": "the original script's rule",
}


def _way(value: Any) -> str:
    return _WAYS.get(str(value), str(value))


_LABELS: Mapping[str, Mapping[str, tuple[str, Callable[[Any], str]]]] = {
    "segmentation": {
        "area": ("Part of the photo", percent),
        "border": ("Part of the photo's border", percent),
        "fragments": ("Pieces", plain),
        "stability": ("Outline's stability", percent),
        "faint": ("Outline without an edge", percent),
        "source": ("Mask from", _way),
        "refined": ("Edges refined", plain),
        "candidates": ("Masks found", plain),
        "masks": ("Masks joined", plain),
        "choice": ("Chosen by", _way),
        "score": ("Choice's score", percent),
        "runner_up": ("Runner-up's score", percent),
    },
    "inpainting": {
        "size": ("Picture", _pixels),
        "brightness": ("Mean brightness", _levels),
        "contrast": ("Contrast (deviation)", _levels),
        "scale": ("Product's scale", percent),
        "preserved_pixels": ("Product's pixels", plain),
        "preserved_max_difference": ("Of these changed", _difference),
        "generated": ("Background made at", _pixels),
        "steps": ("Steps", plain),
        "seed": ("Seed", _whole),
        "attempts": ("Tries", plain),
        "growth": ("Product grew by", percent),
        "variants": ("Other variants", _variants),
    },
    "captioning": {
        "label": ("Recognised as", plain),
        "confidence": ("Confidence", percent),
        "color": ("Main colour", plain),
        "color_share": ("Its part of the product", percent),
        "attempts": ("Tries", plain),
        "problem": ("Why tried again", plain),
    },
}

_SHOWN = {"id", "title", "mask_etag"}
"""Fields that the card shows elsewhere, or that are not the manifest's."""

_GROUPS = {"segmentation": "Cut-out", "inpainting": "Background", "captioning": "Caption"}

_LIMITS: Mapping[str, tuple[str, str, str, str, Callable[[Any], str]]] = {
    # reason: stage, measure, sentence, the recipe's limit, how to write both
    "mask_border": ("segmentation", "border", "{} of the photo's border; wanted at most {}", "max_border", percent),
    "mask_small": ("segmentation", "area", "{} of the photo; wanted at least {}", "min_area", percent),
    "mask_large": ("segmentation", "area", "{} of the photo; wanted at most {}", "max_area", percent),
    "mask_fragments": ("segmentation", "fragments", "{} pieces; wanted at most {}", "max_fragments", plain),
    "mask_unstable": ("segmentation", "stability", "stability {}; wanted at least {}", "min_stability", percent),
    "mask_faint": ("segmentation", "faint", "{} of the outline shows no edge; wanted at most {}", "max_faint", percent),
    "picture_flat": ("inpainting", "contrast", "contrast {} levels of 255; wanted at least {}", "min_contrast", plain),
    "picture_black": (
        "inpainting",
        "brightness",
        "brightness {} levels of 255; wanted at least {}",
        "min_brightness",
        plain,
    ),
    "picture_overgrown": ("inpainting", "growth", "by {} of its area; wanted at most {}", "max_growth", percent),
    "caption_uncertain": ("captioning", "confidence", "confidence {}; wanted at least {}", "min_confidence", percent),
}
"""Doubts that come from a number and its limit."""


def facts_of(record: Mapping[str, Any]) -> Facts:
    """Write what a record holds beyond captions and timings: what the manifest said, what each stage measured, what a model wrote."""
    said = {name: value for name, value in record.get("fields", {}).items() if name not in _SHOWN}
    groups: Facts = {"Manifest": {_words(name).capitalize(): plain(value) for name, value in said.items()}}
    for stage, provenance in record.get("stages", {}).items():
        group = groups.setdefault(_GROUPS.get(stage, stage), {})
        group |= _measured(stage, provenance.get("measures", {}))
    groups["Texts"] = _written(record.get("details", {}))
    return {name: texts for name, group in groups.items() if (texts := {k: v for k, v in group.items() if v})}


def _measured(stage: str, measures: Mapping[str, Any]) -> dict[str, str]:
    measures = dict(measures)
    if "width" in measures and "height" in measures:
        measures = {"size": (measures.pop("width"), measures.pop("height")), **measures}
    known = _LABELS.get(stage, {})
    texts: dict[str, str] = {}
    for name, value in measures.items():
        label, write = known.get(name, (_words(name).capitalize(), plain))
        texts[label] = _try(write, value)
    return texts


def _written(details: Mapping[str, Any]) -> dict[str, str]:
    """Return what a vision-language model wrote beside the description, by language and name."""
    texts: dict[str, str] = {}
    for language, entry in details.items():
        found = {**entry, **entry.get("attributes", {})}
        texts |= {
            f"{_words(name).capitalize()}, {language}": plain(value)
            for name, value in found.items()
            if name not in {"description", "attributes"}
        }
    return texts


def evidence_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return, by reason, the number that raised the doubt and its limit."""
    found: dict[str, str] = {}
    recipe = record.get("recipe", {})
    for reason in record.get("reasons", ()):
        if reason not in _LIMITS:
            continue
        stage, measure, sentence, limit, write = _LIMITS[reason]
        value = record.get("stages", {}).get(stage, {}).get("measures", {}).get(measure)
        bound = _limit(recipe, stage, limit)
        if value is not None and bound is not None:
            found[reason] = sentence.format(_try(write, value), _try(write, bound))
    if "choice_unsure" in record.get("reasons", ()):
        measures = record.get("stages", {}).get("segmentation", {}).get("measures", {})
        if {"score", "runner_up"} <= measures.keys():
            score, runner_up = (_try(percent, measures[name]) for name in ("score", "runner_up"))
            found["choice_unsure"] = f"score {score}, the runner-up's {runner_up}"
    return found


def _limit(recipe: Mapping[str, Any], stage: str, name: str) -> Any:
    """Find a limit in the recipe's section of a stage, or in that section's gates."""
    for section in {"segmentation": ["segmentation"], "inpainting": ["background", "picture"]}.get(stage, ["caption"]):
        settings = recipe.get(section, {})
        for place in (settings, settings.get("gates", {})):
            if name in place:
                return place[name]
    return None


def _try(write: Callable[[Any], str], value: Any) -> str:
    """Write a value in its unit; one of another kind (a later release's) as it is."""
    if value is None:
        return ""
    try:
        return write(value)
    except (LookupError, TypeError, ValueError):
        return plain(value)
