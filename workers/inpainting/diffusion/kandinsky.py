"""Batches through Kandinsky 2.2: a prior turns the text into an image embedding, a decoder paints it.

The library's decoder blends the first picture of a batch into all of them, and softens masks pixel by pixel. Here is the same loop with
every picture's own image and mask.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from workers.inpainting.diffusion.pipeline import (
    generators_for,
    padded,
    pictures,
    place,
    scheduler_for,
    tensors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.recipe import DiffusionBackground
    from workers.inpainting.diffusion.presets import Settings
    from workers.inpainting.diffusion.request import Picture, Request


class KandinskyEngine:
    """The two pipelines. `generate` is called from one thread."""

    def __init__(self, prior: Any, decoder: Any, section: DiffusionBackground, device: torch.device) -> None:
        self._prior = prior
        self._decoder = decoder
        self._device = device
        self._compiled = section.compile
        self._published = decoder.scheduler
        for pipeline in (prior, decoder):
            place(pipeline, section, device)

    @property
    def native(self) -> int:
        """Side of the square that the model was made for, in pixels."""
        return int(self._decoder.unet.config.sample_size * self._decoder.movq_scale_factor)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], settings: Settings) -> list[Picture]:
        """Generate a picture per request, all of one size. Same seed, same noise, whatever the batch."""
        batch = padded(requests, compiled=self._compiled)
        generators = generators_for(batch)
        wanted, unwanted = self._embeddings(batch, generators)
        embeddings = torch.cat([unwanted, wanted]) if settings.guidance > 1 else wanted
        latents = self._denoise(batch, generators, embeddings.to(self._decoder.unet.dtype), settings)
        images = self._decoder.movq.decode(latents, force_not_quantize=True).sample
        self._decoder.maybe_free_model_hooks()
        return pictures((images[: len(requests)].float() / 2 + 0.5).clamp(0, 1))

    def _embeddings(
        self, batch: Sequence[Request], generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image embeddings of prompts and of negative prompts, count x width each."""
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # The prior takes negative prompts for a whole batch or for none of it.
        for negative in (False, True):
            rows = [i for i, request in enumerate(batch) if bool(request.negative_prompt) is negative]
            if not rows:
                continue
            own = [generators[i] for i in rows]
            answer = self._prior(
                [batch[i].prompt for i in rows],
                negative_prompt=[batch[i].negative_prompt for i in rows] if negative else None,
                generator=own * 2 if negative else own,  # negative prompts stand behind the others
            )
            pairs = zip(answer.image_embeds, answer.negative_image_embeds, strict=True)
            found |= dict(zip(rows, pairs, strict=True))
        ordered = [found[i] for i in range(len(batch))]
        return torch.stack([pair[0] for pair in ordered]), torch.stack([pair[1] for pair in ordered])

    def _denoise(
        self,
        batch: Sequence[Request],
        generators: list[torch.Generator],
        embeddings: torch.Tensor,
        settings: Settings,
    ) -> torch.Tensor:
        """Return the finished latents. Under a strength of 1 the first steps are skipped, as in the other pipelines."""
        scheduler = scheduler_for(settings.scheduler, self._published)
        scheduler.set_timesteps(settings.steps, device=self._device)
        skipped = (settings.steps - int(settings.steps * settings.strength)) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        times = scheduler.timesteps[skipped:]
        step_options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        known, keep = self._known(batch, embeddings.dtype)
        noise = randn_tensor(tuple(known.shape), generator=generators, device=self._device, dtype=known.dtype)
        latents: torch.Tensor = noise * scheduler.init_noise_sigma
        if skipped:
            latents = scheduler.add_noise(known, noise, times[:1])
        for number, time in enumerate(times):
            inputs = scheduler.scale_model_input(latents, time)
            predicted = self._predict(torch.cat([inputs, known * keep, keep], 1), time, embeddings, settings.guidance)
            if not isinstance(scheduler, diffusers.DDPMScheduler):  # it alone takes the variance that was learned
                predicted = predicted[:, : latents.shape[1]]
            latents = scheduler.step(predicted, time, latents, return_dict=False, **step_options)[0]
            last = number == len(times) - 1
            there = known if last else scheduler.add_noise(known, noise, times[number + 1 : number + 2])
            latents = keep * there + (1 - keep) * latents
        return latents

    def _known(self, batch: Sequence[Request], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pictures' latents and, in their size, 1 where they stay. Next to what is repainted nothing stays."""
        pixels, mask = tensors(batch, self._device)
        known: torch.Tensor = self._decoder.movq.encode((2 * pixels - 1).to(dtype)).latents
        repainted = functional.interpolate(mask, known.shape[-2:], mode="nearest")
        return known, 1 - functional.max_pool2d(repainted, 3, stride=1, padding=1).to(dtype)

    def _predict(
        self, inputs: torch.Tensor, time: torch.Tensor, embeddings: torch.Tensor, guidance: float
    ) -> torch.Tensor:
        """Return noise and variance, side by side in the channels."""
        guided = len(embeddings) > len(inputs)
        answer: torch.Tensor = self._decoder.unet(
            sample=torch.cat([inputs] * 2) if guided else inputs,
            timestep=time,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": embeddings},
            return_dict=False,
        )[0]
        if not guided:
            return answer
        without, with_prompt = answer.chunk(2)
        noise, variance = with_prompt.chunk(2, dim=1)
        start = without.chunk(2, dim=1)[0]
        return torch.cat([start + guidance * (noise - start), variance], 1)
