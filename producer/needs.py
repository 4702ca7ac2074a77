"""What a recipe needs of a machine, looked at before a job that would fail."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import UsageError, VitrinaError
from shared.keys import STAGES, StageName
from shared.models import known, locate
from shared.plan import chosen
from shared.recipe import Blip2Caption, DiffusionBackground, SamSegmentation

if TYPE_CHECKING:
    from shared.recipe import Recipe
    from shared.settings import Settings

_PRODUCTION = {"sam": "segment_anything", "diffusion": "diffusers", "blip2": "transformers", "vlm": "transformers"}
# The library of the `production` extra behind each model.


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
        if weights == "kandinsky-2.2":
            found.append("kandinsky-2.2-prior")
        if isinstance(section, DiffusionBackground):
            found.append("u2netp")
        if isinstance(section, Blip2Caption):
            others = [language for language in section.languages if language != "en"]
            found += [section.translators.get(language, f"opus-mt-en-{language}") for language in others]
    return list(dict.fromkeys(found))


def needs(recipe: Recipe, settings: Settings) -> list[Finding]:
    """Look at packages, weights, licences and memory, as if this machine ran every stage of the recipe."""
    findings = []
    for stage in STAGES:
        package = _PRODUCTION.get(chosen(recipe, stage).model)
        if package and importlib.util.find_spec(package) is None:
            findings.append(Finding(stage, False, f"needs {package}: install vitrina[production]"))
    memory = device_memory() if settings.device != "cpu" else None
    for weights in weights_of(recipe):
        findings += _look_at(weights, settings, memory)
    return findings


def _look_at(weights: str, settings: Settings, memory: int | None) -> list[Finding]:
    name = f"model {weights}"
    try:
        locate(weights, settings.models_dir)
        findings = [Finding(name, True, "on disk")]
    except VitrinaError as error:
        findings = [Finding(name, False, str(error))]
    try:
        model = known(weights)
    except UsageError:  # a folder of the user's own
        return findings
    if not model.commercial:
        findings.append(Finding(name, None, f"not for commercial use ({model.licence})"))
    if memory is not None and model.memory > memory:
        text = f"needs about {model.memory / 1e9:.0f} GB and the GPU has {memory / 1e9:.0f}: choose smaller weights"
        findings.append(Finding(name, False, text))
    return findings


def device_memory() -> int | None:
    """Return the bytes of the largest GPU, as its driver says; None without one. torch is not imported."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool
            [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return max(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
