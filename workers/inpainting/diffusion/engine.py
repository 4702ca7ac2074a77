"""Batches through diffusers' own inpainting pipelines.

Given pictures and a list of generators, the pipelines encode pictures one by one. Here latents are encoded for the whole batch first and
handed over ready, together with cached text embeddings; the denoising loop is the library's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor

from shared.errors import UsageError
from workers.inpainting.diffusion.kandinsky import KandinskyEngine
from workers.inpainting.diffusion.lora import add_lora
from workers.inpainting.diffusion.pipeline import (
    HALF,
    generators_for,
    padded,
    pictures,
    place,
    read,
    scheduler_for,
    tensors,
)
from workers.inpainting.diffusion.request import Picture, Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shared.recipe import DiffusionBackground
    from workers.inpainting.diffusion.presets import Settings

__all__ = ["Engine", "KandinskyEngine", "Picture", "Request", "load_engine", "scheduler_for"]

PROMPTS_KEPT = 256
"""Encoded prompts kept: 240 KB each in half precision for SD 1.5, and a job has one or one per category."""


class Engine:
    """A pipeline of the Stable Diffusion family (1.5, 2, XL; UNets of 9 or 4 channels). `generate` is called from one thread."""

    def __init__(self, pipeline: Any, section: DiffusionBackground, device: torch.device, dtype: torch.dtype) -> None:
        self._pipe = pipeline
        self._device = device
        self._dtype = dtype
        self._compiled = section.compile
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
        """Generate a picture per request, all of one size. Same seed, same noise, whatever the batch.

        With a scheduler that draws noise at every step (`euler-a`, `lcm`) that noise is the seed's as well, but not what the library would draw.
        """
        if self._pipe.vae.dtype != self._dtype:
            # SDXL's runs in full precision for a while, and a batch that ran out of memory left it there.
            self._pipe.vae.to(dtype=self._dtype)
        batch = padded(requests, compiled=self._compiled)
        generators = generators_for(batch)
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
        return pictures(output.images[: len(requests)], getattr(output, "nsfw_content_detected", None))

    def _latents(
        self, batch: Sequence[Request], generators: list[torch.Generator], settings: Settings
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return image (pixels, or latents where the pipeline needs them), mask and the masked image's latents.

        Random numbers are drawn in the order in which the pipeline would draw them for one picture.
        """
        plain, mask = tensors(batch, self._device)
        pixels = 2 * plain - 1  # as the autoencoder takes them; the pipeline takes plain ones
        if self._pipe.unet.config.in_channels == 4:  # noqa: PLR2004 - not made for inpainting
            image = self._encode(pixels, generators)
            return image, mask, image  # the pipeline asks for the masked one too; this network never sees it
        image = self._encode(pixels, generators) if settings.strength < 1 else plain
        later = [torch.Generator().set_state(generator.get_state()) for generator in generators]
        factor = self._pipe.vae_scale_factor
        shape = (1, self._pipe.vae.config.latent_channels, pixels.shape[2] // factor, pixels.shape[3] // factor)
        for generator in later:  # the pipeline's own first draw
            randn_tensor(shape, generator=generator, device=self._device, dtype=self._dtype)
        return image, mask, self._encode(pixels * (mask < HALF), later)

    def _encode(self, pixels: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        vae = self._pipe.vae
        overflows = self._xl and vae.config.force_upcast and vae.dtype == torch.float16
        if overflows:
            vae.to(dtype=torch.float32)
        spread = vae.encode(pixels.to(vae.dtype)).latent_dist
        if overflows:
            vae.to(dtype=torch.float16)
        noise = randn_tensor(
            tuple(spread.mean.shape), generator=generators, device=spread.mean.device, dtype=spread.mean.dtype
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


def load_engine(
    folder: Path,
    prior: Path | None,
    section: DiffusionBackground,
    device: torch.device,
    dtype: torch.dtype,
    *,
    lora: Path | None = None,
) -> Engine | KandinskyEngine:
    """Read a pipeline in the hub's layout; `prior` is Kandinsky's, `lora` a file or a folder. Raises `ModelCorruptError`, `UsageError`."""
    if (folder / "movq").is_dir():
        if prior is None:
            raise UsageError(f"{folder} is Kandinsky's decoder: its prior belongs in {folder / 'prior'}")
        if lora is not None:
            raise UsageError(f"{folder} is Kandinsky's, which takes no LoRA: leave background.lora out")
        if section.resolution == "native":
            raise UsageError(
                f"{folder} is Kandinsky's, which makes multiples of 64 pixels: give background.resolution a number"
            )
        first = read(diffusers.KandinskyV22PriorPipeline, prior, section, dtype)
        decoder = read(diffusers.KandinskyV22InpaintPipeline, folder, section, dtype)
        return KandinskyEngine(first, decoder, section, device)
    pipeline = read(diffusers.AutoPipelineForInpainting, folder, section, dtype)
    if not all(hasattr(pipeline, part) for part in ("vae", "unet", "encode_prompt")):
        kind = type(pipeline).__name__
        raise UsageError(f"{folder} holds a {kind}: take one of the Stable Diffusion family or Kandinsky 2.2")
    if lora is not None:
        add_lora(pipeline, lora, section.lora_scale)
    return Engine(pipeline, section, device, dtype)
