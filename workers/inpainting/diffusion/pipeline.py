"""A pipeline of diffusers: read from its folder, brought to its device, given a scheduler. And what goes in and comes out of all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from shared.errors import ModelCorruptError, UsageError
from workers.inpainting.diffusion.request import Picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from shared.recipe import DiffusionBackground
    from workers.inpainting.diffusion.request import Request

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
HALF = 0.5
"""Where soft masks are cut: the pipelines take no softer ones."""


def read(kind: Any, folder: Path, section: DiffusionBackground, dtype: torch.dtype) -> Any:
    """Read a pipeline in the hub's layout. Raises `ModelCorruptError`, `UsageError`."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    if any(folder.rglob("*.fp16.safetensors")):
        options["variant"] = "fp16"
    try:
        options |= _checker(folder, wanted=section.safety_checker)
        pipeline = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).partition("\n")[0]
        msg = f"{folder} is no inpainting model that diffusers can read: fetch it again ({first})"
        raise ModelCorruptError(msg) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _checker(folder: Path, *, wanted: bool) -> dict[str, Any]:
    """Return the options that drop a safety checker. One from elsewhere may lack its weights while its index still names it."""
    index = json.loads((folder / "model_index.json").read_text())
    if not any(index.get("safety_checker") or ()):
        return {}
    if not wanted:
        return {"safety_checker": None, "requires_safety_checker": False}
    if not any((folder / "safety_checker").glob("*.safetensors")):
        msg = f"{folder} came without its safety checker: put it there, or set background.safety_checker to false"
        raise UsageError(msg)
    return {}


def place(pipeline: Any, section: DiffusionBackground, device: torch.device) -> None:
    """Bring a pipeline to its device as the recipe asks. A CPU has nothing to be offloaded to."""
    autoencoder = getattr(pipeline, "vae", None)
    if autoencoder is not None and section.tiling:
        autoencoder.enable_tiling()
        autoencoder.enable_slicing()
    if section.offload == "model" and device.type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
    elif section.offload == "sequential" and device.type != "cpu":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
        for part in (getattr(pipeline, name, None) for name in ("unet", "vae", "movq")):
            if part is not None:  # convolutions on a GPU's tensor cores want their channels last
                part.to(memory_format=torch.channels_last)
    if section.compile and hasattr(pipeline, "unet"):
        pipeline.unet.compile()


def scheduler_for(name: str, published: Any) -> Any:
    """Return a fresh scheduler: the named one with the published one's noise levels, or a copy of the published one."""
    if name == "published":
        return type(published).from_config(published.config)
    # Only the published kind may know what to do with a variance that the network has learned.
    config = {key: value for key, value in published.config.items() if key != "variance_type"}
    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


def padded(requests: Sequence[Request], *, compiled: bool) -> list[Request]:
    """Fill a batch up to a power of two for a compiled network, which is compiled again for every new size."""
    missing = (1 << (len(requests) - 1).bit_length()) - len(requests) if compiled else 0
    return [*requests, *[requests[-1]] * missing]


def generators_for(requests: Iterable[Request]) -> list[torch.Generator]:
    """Return one generator per picture. On the CPU whatever the device: same seed, same noise, on any machine."""
    return [torch.Generator().manual_seed(request.seed) for request in requests]


def tensors(batch: Sequence[Request], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures (count x 3 x height x width, 0 to 1) and masks (count x 1 x height x width, 0 or 1, 1 is repainted)."""
    pixels = torch.from_numpy(np.stack([request.image for request in batch])).permute(0, 3, 1, 2)
    mask = torch.from_numpy(np.stack([request.mask for request in batch]))[:, None]
    return pixels.to(device).float() / 255, (mask.to(device) >= HALF).float()


def pictures(images: torch.Tensor, blanked: Sequence[bool] | None = None) -> list[Picture]:
    """Return a picture per image (count x 3 x height x width, 0 to 1). What overflowed comes out black, for the gate to see."""
    levels = (images.float().nan_to_num(0) * 255).round().clamp(0, 255).to(torch.uint8)
    rows = levels.permute(0, 2, 3, 1).cpu().numpy()
    return [Picture(rgb, bool(blanked[number]) if blanked else False) for number, rgb in enumerate(rows)]
