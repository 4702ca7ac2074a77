"""Whether a model can fit at all, looked at before it is loaded: the kernel kills a process that tries, and leaves no word of why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import ModelTooLargeError, UsageError
from shared.models import known
from workers.memory import machine_bytes
from workers.registry import make_model

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.models import Model as Weights
    from shared.recipe import ModelSection
    from shared.settings import Settings
    from workers.stage import Model


def make_fitting(stage: StageName, section: ModelSection, settings: Settings) -> Model[Any, Any]:
    """Build the model that a section of the recipe chooses, without loading it. Raises `ModelTooLargeError`, `UsageError`."""
    weights = _weights(section)
    # Weights in eight bits are smaller than anything that is known of them.
    if weights and getattr(section, "quantize", "none") == "none":
        _require_room(weights, settings, offloaded=getattr(section, "offload", "none") != "none")
    return make_model(stage, section, settings)


def _weights(section: ModelSection) -> Weights | None:
    try:
        return known(getattr(section, "weights", None) or "")
    except UsageError:  # starter models, which fit anywhere, and people's own folders, of which nothing is known
        return None


def _require_room(weights: Weights, settings: Settings, *, offloaded: bool) -> None:
    import torch  # noqa: PLC0415 - every model with weights of its own loads it, the others need not

    from workers.devices import device_for  # noqa: PLC0415 - as above

    device = device_for(settings.device)
    on_gpu = device.type == "cuda" and not offloaded
    room = torch.cuda.mem_get_info(device)[1] if on_gpu else machine_bytes()
    # Of what a model is known to need, about half is its weights, and the rest a batch, which can be smaller. On a processor they are in single
    # precision, as most files are.
    least = weights.memory // 2 if on_gpu else max(weights.memory // 2, weights.size)
    if least > room:
        where = f"device {device}" if on_gpu else "this machine or container"
        msg = f"the weights of {weights.name} alone take about {least / 1e9:.1f} GB and {where} has {room / 1e9:.1f}: choose smaller ones, or a larger machine"
        raise ModelTooLargeError(msg)
