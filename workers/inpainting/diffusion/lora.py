"""A LoRA, added to a pipeline's networks once and for all: what runs afterwards is as fast as without it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import diffusers
from safetensors import SafetensorError, safe_open

from shared.errors import ModelCorruptError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "pytorch_lora_weights.safetensors"
"""The file's name in the hub's layout."""
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight")
# What names one layer's first matrix, in the three layouts that are about.
_NETWORKS = ("unet", "text_encoder", "text_encoder_2")


def add_lora(pipeline: Any, path: Path, scale: float) -> None:
    """Fuse the LoRA of a file, or of the folder it lies in, into a pipeline's weights. Raises `ModelCorruptError`, `UsageError`."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise UsageError(
            f"{file} is no LoRA in safetensors: name such a file in background.lora, or a folder with {FILE}"
        )
    try:
        with safe_open(file, "pt") as tensors:
            layers = sum(name.endswith(_DOWN) for name in tensors.keys())  # noqa: SIM118 - not a mapping
        with _silence():
            pipeline.load_lora_weights(
                file.parent, weight_name=file.name, adapter_name="recipe", local_files_only=True, use_safetensors=True
            )
    except ImportError:
        raise UsageError("background.lora needs peft: install vitrina[production]") from None
    except (OSError, SafetensorError) as error:
        raise ModelCorruptError(f"cannot read the LoRA {file}: fetch it again ({_first(error)})") from None
    except (ValueError, RuntimeError, KeyError) as error:
        raise UsageError(
            f"the LoRA {file} was made for another model: choose one for these weights ({_first(error)})"
        ) from None
    taken = sum(_has_layer(module) for name in _NETWORKS for module in _modules(pipeline, name))
    if not taken or taken != layers:
        raise UsageError(
            f"the LoRA {file} was made for another model: {taken} of its {layers} layers have a place in this one"
        )
    pipeline.fuse_lora(lora_scale=scale, safe_fusing=True)
    pipeline.unload_lora_weights()


def _modules(pipeline: Any, name: str) -> list[Any]:
    network = getattr(pipeline, name, None)
    return [] if network is None else list(network.modules())


def _has_layer(module: Any) -> bool:
    return "recipe" in getattr(module, "lora_A", ())


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the library from telling what it did not find: it is looked at here."""
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(before)
