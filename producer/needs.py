"""What a recipe needs of a machine, looked at before a job that would fail."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.gpus import device_memory
from shared.errors import UsageError, VitrinaError
from shared.keys import STAGES, StageName
from shared.models import REGISTRY, known, locate
from shared.plan import chosen
from shared.recipe import Blip2Caption, DiffusionBackground, SamSegmentation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.recipe import Recipe
    from shared.settings import Settings

_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "sam": ("torch", "torchvision", "segment_anything", "onnxruntime"),
    "diffusion": ("torch", "diffusers", "transformers", "accelerate", "onnxruntime"),
    "blip2": ("torch", "torchvision", "transformers", "sentencepiece", "sacremoses"),
    "vlm": ("torch", "torchvision", "transformers"),
}
"""What the models of the `production` extra import."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a job needs."""

    name: str
    well: bool | None
    """False: the job would fail. None: the operator should know."""
    text: str


def weights_of(recipe: Recipe, stage: StageName | None = None) -> list[str]:
    """Return the names of the weights that a recipe, or one stage of it, loads."""
    found: list[str] = []
    for name in STAGES if stage is None else (stage,):
        section = chosen(recipe, name)
        if section.model == "saliency" or (isinstance(section, SamSegmentation) and section.prior):
            found.append("u2netp")
        if section.model == "labels":
            found.append("efficientnet-lite0")
        weights = getattr(section, "weights", None)
        if weights:
            found.append(weights)
            if weights in REGISTRY:
                found += REGISTRY[weights].also
        if isinstance(section, DiffusionBackground):
            found += [*([section.lora] if section.lora else []), "u2netp"]
        if isinstance(section, Blip2Caption):
            others = [language for language in section.languages if language != "en"]
            found += [section.translators.get(language, f"opus-mt-en-{language}") for language in others]
    return list(dict.fromkeys(found))


def needs(recipe: Recipe, settings: Settings) -> list[Finding]:
    """Look at packages, weights, licences and memory, as if this machine ran every stage of the recipe."""
    findings = []
    for stage in STAGES:
        section = chosen(recipe, stage)
        wanted = _PACKAGES.get(section.model, ())
        if getattr(section, "quantize", "none") == "int8":
            wanted = (*wanted, "bitsandbytes")
        if getattr(section, "lora", None):
            wanted = (*wanted, "peft")
        lacking = [package for package in wanted if importlib.util.find_spec(package) is None]
        if lacking:
            findings.append(Finding(stage, False, f"needs {', '.join(lacking)}: install {_source(lacking)}"))
    for weights in weights_of(recipe):
        findings += _look_at(weights, settings)
    return [*findings, *_memory(recipe, settings)]


def _source(lacking: list[str]) -> str:
    return "bitsandbytes" if lacking == ["bitsandbytes"] else "vitrina[worker,production]"


def _look_at(weights: str, settings: Settings) -> list[Finding]:
    name = f"model {weights}"
    try:
        model = known(weights)
        about = f" ({_size(model.size)}, about {_size(model.memory)} of memory, {model.licence})"
    except UsageError:  # a folder of the user's own
        model, about = None, ""
    try:
        locate(weights, settings.models_dir)
        findings = [Finding(name, True, f"on disk{about}")]
    except VitrinaError as error:
        findings = [Finding(name, False, f"{error}{about}")]
    if model and model.commercial is False:
        findings.append(Finding(name, None, f"not for commercial use ({model.licence})"))
    return findings


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB" if size else "?"  # noqa: PLR2004 - the unit that reads best


def _memory(recipe: Recipe, settings: Settings) -> list[Finding]:
    """Look whether the weights of each stage, and those of all together, fit on the largest GPU."""
    if not any(chosen(recipe, stage).model in _PACKAGES for stage in STAGES):
        return []  # the starter models run anywhere
    room = device_memory() if settings.device != "cpu" else None
    if room is None:
        return [Finding("device", None, "no GPU found: these models are very slow on a CPU")]
    needed = {stage: sum(_bytes(weights) for weights in weights_of(recipe, stage)) for stage in STAGES}
    findings = []
    for stage, need in needed.items():
        if need > room:
            # Smaller batches, and parts that wait in the machine's own memory, need less; half is about what the weights alone do.
            offload = getattr(chosen(recipe, stage), "offload", "none") != "none"
            well = False if need > 2 * room and not offload else None
            text = f"needs about {need / 1e9:.0f} GB and the GPU has {room / 1e9:.0f}: choose smaller weights"
            findings.append(Finding(stage, well, text))
    together = sum(needed.values())
    if not findings and together > room:
        text = f"all stages together need about {together / 1e9:.0f} GB and the GPU has {room / 1e9:.0f}: give each worker its own"
        findings.append(Finding("device", None, text))
    return findings


def _bytes(weights: str) -> int:
    try:
        model = known(weights)
    except UsageError:  # a folder of the user's own
        return 0
    return 0 if model.starter else model.memory
