"""Where a model runs, and in which precision."""

from __future__ import annotations

import torch

from shared.errors import UsageError

HALF = torch.float16


def device_for(name: str) -> torch.device:
    """Return the device of a setting: `auto` is the GPU where there is one. Raises `UsageError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no such device {name!r}: set VITRINA_DEVICE to auto, cpu, cuda or cuda:1") from None
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UsageError(f"no device {name!r} among the {found} GPUs that torch finds here: set VITRINA_DEVICE")
    return device


def dtype_for(precision: str, device: torch.device, half: torch.dtype = HALF) -> torch.dtype:
    """Return the type of a recipe's `precision`: `auto` is `half` on a GPU and float32 on a CPU."""
    if precision == "auto":
        return half if device.type == "cuda" else torch.float32
    found: torch.dtype = getattr(torch, precision)
    return found
