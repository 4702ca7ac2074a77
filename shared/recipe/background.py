"""The recipe's choices of background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shared.recipe.section import Fraction, HexColor, ModelSection, Precision, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping

Text = Annotated[str, Field(max_length=1000)]
LCM_LORAS: Mapping[str, tuple[str, ...]] = {"lcm-lora-sd15": ("dreamshaper-8", "sd15"), "lcm-lora-sdxl": ("sdxl",)}
"""Which presets each of the LoRAs that cut steps fits."""
_PRESETS = ("dreamshaper-8", "sd15", "sd2", "sdxl", "kandinsky-2.2")
_LCM_STEPS = 50
# Those that the LCMs were distilled with: their scheduler takes some of these.


class StudioBackground(ModelSection):
    """A neutral backdrop that suits the product's colours, with a soft contact shadow."""

    model: Literal["studio"] = "studio"
    color: HexColor | None = None
    """The backdrop's base colour; None chooses one from the product."""
    shadow: Fraction = 0.45
    """Darkness of the contact shadow."""


class ColorBackground(ModelSection):
    """One plain colour."""

    model: Literal["color"]
    color: HexColor = "#ffffff"
    shadow: Fraction = 0.0


class ImageBackground(ModelSection):
    """A ready picture, scaled to cover the frame."""

    model: Literal["image"]
    image: Annotated[str, Field(min_length=1, max_length=4096)]
    """A file on the submitting machine, or a key of the output storage (`backgrounds/…`) once submitted."""
    shadow: Fraction = 0.0


class TransparentBackground(ModelSection):
    """No background: needs `picture.format: png` or `webp`."""

    model: Literal["transparent"]


class DiffusionBackground(ModelSection):
    """A generated background: an inpainting model of diffusers fills everything but the product."""

    loads: ClassVar[tuple[str, ...]] = (
        "weights",
        "precision",
        "lora",
        "lora_scale",
        "compile",
        "offload",
        "tiling",
        "safety_checker",
    )

    item_fields: ClassVar[tuple[str, ...]] = ("prompt", "category", "title", "seed")

    gpu_batch: ClassVar[int | None] = 16
    # Of 512 pixels squared, 0.8 TFLOP a step each and twice that with guidance; larger pictures are fewer.

    model: Literal["diffusion"]
    weights: Weights = "dreamshaper-8"
    """`dreamshaper-8`, `sd15`, `sd2`, `sdxl`, `kandinsky-2.2`, a hub id with its revision, or a local folder."""
    precision: Precision = "auto"
    lora: Weights | None = None
    """A LoRA that is added to the network: `lcm-lora-sd15`, `lcm-lora-sdxl`, a hub id with its revision, or a local file or folder. Not for Kandinsky.

    The two named ones cut the steps to six, at a guidance of 1.5, unless the recipe says otherwise: several times faster, and other pictures, of lower quality.
    """
    lora_scale: float = Field(default=1.0, gt=0, le=2)
    """How strongly; 1 is as it was trained."""
    prompt: Text = "a product photo of {category}, {color} smooth background, soft studio light, realistic"
    """`{category}`, `{title}` and `{color}` are filled in per item; what an item lacks leaves no trace."""
    negative_prompt: Text = "text, watermark, people, extra objects, clutter"
    color: Annotated[str, Field(max_length=40)] = "light grey"
    """The background's colour in words, for `{color}`."""
    guidance: float | None = Field(default=None, ge=0, le=30)
    """Guidance scale; None takes the preset's."""
    steps: int | None = Field(default=None, ge=1, le=200)
    strength: float = Field(default=1.0, gt=0, le=1)
    """Under 1 the photo's own background shows through, and only `steps` x `strength` steps are run."""
    resolution: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] | Literal["native"] | None = None
    """Side of the square whose area is generated, in pixels; None takes the preset's own one.

    `native` generates at each photo's own size, down to multiples of 8, as the original script did: large photos need much memory, photos
    of different sizes share no batch, and things tend to appear twice far above the preset's size. Not for Kandinsky.
    """
    scheduler: Literal["published", "ddim", "dpm", "euler", "euler-a", "unipc", "lcm"] | None = None
    """None takes the preset's; `published` is the one that came with the weights.

    `lcm` is for weights distilled for it, or with an LCM `lora`: they need only four to eight `steps` at a `guidance` of 1 to 2, and draw other pictures, of lower quality.
    """
    variants: int = Field(default=1, ge=1, le=8)
    """Pictures per photo, each with a seed of its own."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """None gives every item a seed of its own, always the same one."""
    reseeds: int = Field(default=2, ge=0, le=2)
    """Further tries with another seed when a picture comes out black, flat or blanked."""
    mask_grow: float = Field(default=4.0, ge=0, le=64)
    """Pixels, at the generated resolution, that the product's mask is grown by so that its rim is not repainted."""
    mask_blur: float = Field(default=4.0, ge=0, le=64)
    """Pixels over which the grown mask softens, before it is cut at one half: rounds its outline."""
    max_growth: Fraction | None = 0.1
    """Largest part of the product's area by which a second segmentation of the picture may exceed its mask; None does not look."""
    safety_checker: bool = False
    """Run the model's own checker, where it has one."""
    compile: bool = False
    """Compile the network (`torch.compile`): a slow start, then faster."""
    offload: Literal["none", "model", "sequential"] = "none"
    """For small GPUs: keep in memory only the part at work; `model` is somewhat slower, `sequential` much. Does nothing on a CPU."""
    tiling: bool = False
    """For small GPUs: encode and decode pictures one at a time, and large ones in tiles, whose seams may show. Not for Kandinsky."""

    @model_validator(mode="after")
    def _some_steps_are_run(self) -> DiffusionBackground:
        if self.steps is not None and int(self.steps * self.strength) < 1:
            msg = f"steps {self.steps} at strength {self.strength} runs no step: raise one of them"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _lora_fits(self) -> DiffusionBackground:
        if self.lora and self.weights == "kandinsky-2.2":
            raise ValueError("lora is for the Stable Diffusion family: leave it out, or choose other weights")
        if self.resolution == "native" and self.weights == "kandinsky-2.2":
            raise ValueError(
                "resolution native is for the Stable Diffusion family: give a number, or choose other weights"
            )
        fits = LCM_LORAS.get(self.lora or "")
        if fits and self.weights in _PRESETS and self.weights not in fits:
            raise ValueError(f"lora {self.lora} is for {' and '.join(fits)}, not for {self.weights}")
        return self

    @model_validator(mode="after")
    def _lcm_runs_few_steps(self) -> DiffusionBackground:
        scheduler = self.scheduler or ("lcm" if self.lora in LCM_LORAS else None)
        if scheduler == "lcm" and self.steps is not None and self.steps > _LCM_STEPS:
            raise ValueError(f"the lcm scheduler runs at most {_LCM_STEPS} steps, and four to eight are enough")
        return self

    @model_validator(mode="after")
    def _compiled_stays_in_memory(self) -> DiffusionBackground:
        if self.compile and self.offload != "none":
            msg = "compile needs the whole network in memory: set offload to 'none', or compile to false"
            raise ValueError(msg)
        return self


Background = Annotated[
    StudioBackground | ColorBackground | ImageBackground | TransparentBackground | DiffusionBackground,
    Field(discriminator="model"),
]
