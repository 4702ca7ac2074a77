"""Batches through diffusers' own inpainting pipelines.

Given pictures and a list of generators, the pipelines encode pictures one by one. Here latents are encoded for the whole batch first and
handed over ready, together with cached text embeddings; the denoising loop is the library's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.utils.torch_utils import randn_tensor

from shared.errors import ModelCorruptError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import DiffusionBackground
    from workers.inpainting.diffusion.presets import Settings

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
PROMPTS_KEPT = 256
"""Encoded prompts kept: 120 KB each for SD 1.5, and a job has one or one per category."""


@dataclass(frozen=True, slots=True)
class Request:
    """One picture to generate."""

    image: NDArray[np.uint8]
    """Height x width x 3, at the size to generate."""
    mask: NDArray[np.float32]
    """Height x width, 1 where the background is wanted, 0 on the product."""
    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One generated picture."""

    rgb: NDArray[np.uint8]
    """Height x width x 3."""
    blanked: bool = False
    """The model's own safety checker replaced it by a black one."""


class Engine:
    """A pipeline of the Stable Diffusion family (1.5, 2, XL; UNets of 9 or 4 channels). `generate` is called from one thread."""

    def __init__(self, pipeline: Any, section: DiffusionBackground, device: torch.device, dtype: torch.dtype) -> None:
        self._pipe = pipeline
        self._device = device
        self._dtype = dtype
        self._pad = section.compile
        self._xl = getattr(pipeline, "text_encoder_2", None) is not None
        self._published = pipeline.scheduler
        self._prompts: OrderedDict[tuple[str, str], tuple[torch.Tensor, ...]] = OrderedDict()
        place(pipeline, section, device)

    @property
    def native(self) -> int:
        """Side of the square that the model was made for, in pixels."""
        return int(self._pipe.unet.config.sample_size * self._pipe.vae_scale_factor)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], settings: Settings) -> list[Picture]:
        """Generate a picture per request, all of one size. Same seed, same noise, whatever the batch."""
        count = len(requests)
        batch = list(requests)
        if self._pad:  # a compiled network is compiled again for every new size
            batch += [batch[-1]] * (_power_of_two(count) - count)
        generators = [torch.Generator().manual_seed(request.seed) for request in batch]
        image, mask, masked_latents = self._latents(batch, generators, settings)
        height, width = batch[0].mask.shape
        self._pipe.scheduler = scheduler_for(settings.scheduler, self._published)
        output = self._pipe(
            **self._conditions(batch),
            image=image,
            mask_image=mask,
            masked_image_latents=masked_latents,
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            strength=settings.strength,
            generator=generators,
            output_type="pt",
        )
        pictures = (output.images[:count].float() * 255).round().clamp(0, 255).to(torch.uint8)
        blanked = getattr(output, "nsfw_content_detected", None) or [False] * count
        rows = pictures.permute(0, 2, 3, 1).cpu().numpy()
        return [Picture(rgb, bool(blank)) for rgb, blank in zip(rows, blanked, strict=False)]

    def _latents(
        self, batch: Sequence[Request], generators: list[torch.Generator], settings: Settings
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return image (pixels, or latents where the pipeline needs them), mask and the masked image's latents.

        Random numbers are drawn in the order in which the pipeline would draw them for one picture.
        """
        pixels = torch.from_numpy(np.stack([request.image for request in batch])).permute(0, 3, 1, 2)
        plain = pixels.to(self._device).float() / 255  # as the pipelines take pictures
        pixels = 2 * plain - 1  # as the autoencoder does
        mask = torch.from_numpy(np.stack([request.mask for request in batch]))[:, None].to(self._device)
        mask = (mask >= 0.5).float()  # noqa: PLR2004 - half; the pipelines take no softer masks
        image = plain
        if settings.strength < 1 or self._pipe.unet.config.in_channels == 4:  # noqa: PLR2004 - not made for inpainting
            image = self._encode(pixels, generators)
        later = [_clone(generator) for generator in generators]
        factor = self._pipe.vae_scale_factor
        shape = (1, self._pipe.vae.config.latent_channels, pixels.shape[2] // factor, pixels.shape[3] // factor)
        for generator in later:
            randn_tensor(shape, generator=generator, device=self._device, dtype=self._dtype)
        return image, mask, self._encode(pixels * (mask < 0.5), later)  # noqa: PLR2004 - half

    def _encode(self, pixels: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        vae = self._pipe.vae
        half = vae.dtype == torch.float16 and vae.config.force_upcast
        if half:  # SDXL's overflows in half precision
            vae.to(dtype=torch.float32)
        spread = vae.encode(pixels.to(vae.dtype)).latent_dist
        if half:
            vae.to(dtype=torch.float16)
        one = (1, *spread.mean.shape[1:])
        noise = torch.cat(
            [randn_tensor(one, generator=g, device=spread.mean.device, dtype=spread.mean.dtype) for g in generators]
        )
        latents: torch.Tensor = (spread.mean + spread.std * noise) * vae.config.scaling_factor
        return latents.to(self._dtype)

    def _conditions(self, batch: Sequence[Request]) -> dict[str, torch.Tensor]:
        rows = [self._encoded(request.prompt, request.negative_prompt) for request in batch]
        names = ["prompt_embeds", "negative_prompt_embeds"]
        names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"] if self._xl else []
        return {name: torch.cat([row[i] for row in rows]) for i, name in enumerate(names)}

    def _encoded(self, prompt: str, negative: str) -> tuple[torch.Tensor, ...]:
        known = self._prompts.get((prompt, negative))
        if known is None:
            known = self._pipe.encode_prompt(
                prompt=prompt,
                device=self._device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
                negative_prompt=negative,
            )
            self._prompts[prompt, negative] = known
            if len(self._prompts) > PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end((prompt, negative))
        return known


class KandinskyEngine:
    """Kandinsky 2.2: a prior turns the text into an image embedding, a decoder paints it.

    One picture at a time: the library's decoder takes the first picture of a batch for all of them.
    """

    def __init__(self, prior: Any, decoder: Any, section: DiffusionBackground, device: torch.device) -> None:
        self._prior = prior
        self._decoder = decoder
        self._published = decoder.scheduler
        for pipeline in (prior, decoder):
            place(pipeline, section, device)

    @property
    def native(self) -> int:
        """Side of the square that the model was made for, in pixels."""
        return int(self._decoder.unet.config.sample_size * self._decoder.movq_scale_factor)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], settings: Settings) -> list[Picture]:
        """Generate a picture per request."""
        return [self._one(request, settings) for request in requests]

    def _one(self, request: Request, settings: Settings) -> Picture:
        generator = torch.Generator().manual_seed(request.seed)
        embeds = self._prior(request.prompt, negative_prompt=request.negative_prompt or None, generator=generator)
        height, width = request.mask.shape
        self._decoder.scheduler = scheduler_for(settings.scheduler, self._published)
        output = self._decoder(
            image_embeds=embeds.image_embeds,
            negative_image_embeds=embeds.negative_image_embeds,
            image=torch.from_numpy(request.image).permute(2, 0, 1)[None].float() / 127.5 - 1,
            mask_image=torch.from_numpy((request.mask >= 0.5).astype(np.float32))[None, None],  # noqa: PLR2004 - half
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=generator,
            output_type="np",
        )
        return Picture((output.images[0] * 255).round().clip(0, 255).astype(np.uint8))


def load_engine(
    folder: Path, prior: Path | None, section: DiffusionBackground, device: torch.device, dtype: torch.dtype
) -> Engine | KandinskyEngine:
    """Read a pipeline in the hub's layout; `prior` is Kandinsky's. Raises `ModelCorruptError`, `UsageError`."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    if any(folder.rglob("*.fp16.safetensors")):
        options["variant"] = "fp16"
    if not section.safety_checker and (folder / "safety_checker").is_dir():
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        if (folder / "movq").is_dir():
            return _load_kandinsky(folder, prior, section, device, dtype)
        pipeline = _read(diffusers.AutoPipelineForInpainting, folder, options)
    except (OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ModelCorruptError(
            f"{folder} is no inpainting model that diffusers can read: fetch it again ({first})"
        ) from error
    if not hasattr(pipeline, "vae"):
        raise UsageError(
            f"{folder} holds a {type(pipeline).__name__}: take one of the Stable Diffusion family or Kandinsky 2.2"
        )
    return Engine(pipeline, section, device, dtype)


def _load_kandinsky(
    folder: Path, prior: Path | None, section: DiffusionBackground, device: torch.device, dtype: torch.dtype
) -> KandinskyEngine:
    if prior is None:
        raise UsageError(f"{folder} is Kandinsky's decoder: its prior belongs in {folder / 'prior'}")
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    first = _read(diffusers.KandinskyV22PriorPipeline, prior, options)
    return KandinskyEngine(first, _read(diffusers.KandinskyV22InpaintPipeline, folder, options), section, device)


def _read(kind: Any, folder: Path, options: dict[str, Any]) -> Any:
    pipeline = kind.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def place(pipeline: Any, section: DiffusionBackground, device: torch.device) -> None:
    """Bring a pipeline to its device as the recipe asks."""
    autoencoder = getattr(pipeline, "vae", None)
    if autoencoder is not None and section.tiling:
        autoencoder.enable_tiling()
        autoencoder.enable_slicing()
    if section.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif section.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    network = getattr(pipeline, "unet", None)
    if network is not None and section.offload == "none":
        # Convolutions on a GPU's tensor cores want their channels last.
        network.to(memory_format=torch.channels_last)
        if autoencoder is not None:
            autoencoder.to(memory_format=torch.channels_last)
        if section.compile:
            network.compile()


def scheduler_for(name: str | None, published: Any) -> Any:
    """Return a fresh scheduler: the named one with the published one's noise levels, or a copy of the published one."""
    kind = getattr(diffusers, SCHEDULERS[name]) if name else type(published)
    return kind.from_config(published.config)


def _clone(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
