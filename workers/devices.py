"""Where a model runs, and in which precision."""

from __future__ import annotations

import torch

HALF = torch.float16


def device_for(name: str) -> torch.device:
    """Return the device of a setting: `auto` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def dtype_for(precision: str, device: torch.device, half: torch.dtype = HALF) -> torch.dtype:
    """Return the type of a recipe's `precision`: `auto` is `half` on a GPU and float32 on a CPU."""
    if precision == "auto":
        return half if device.type == "cuda" else torch.float32
    found: torch.dtype = getattr(torch, precision)
    return found
