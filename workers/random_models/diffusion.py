"""Inpainting pipelines of diffusers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from pathlib import Path

Size = Literal["tiny", "full"]

_WORDS = [
    "a",
    "the",
    "photo",
    "of",
    "in",
    "on",
    "with",
    "product",
    "shoe",
    "mug",
    "red",
    "blue",
    "white",
    "grey",
    "smooth",
    "background",
    "studio",
    "light",
    "and",
    "small",
    "large",
]


def save_inpainting(
    folder: Path, *, size: Size = "tiny", channels: int = 9, dtype: torch.dtype = torch.float32
) -> Path:
    """Save a Stable Diffusion 1.5 inpainting pipeline; `channels` is 9 for one made for inpainting, 4 for one that was not."""
    import diffusers  # noqa: PLC0415 - heavy
    import transformers  # noqa: PLC0415 - heavy

    full = size == "full"
    text = (
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
        if full
        else _tiny_text()
    )
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        vae=_autoencoder(full),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=save_clip_tokenizer(folder.parent / f"{folder.name}-words"),
        unet=diffusers.UNet2DConditionModel(
            sample_size=64 if full else 8,
            in_channels=channels,
            block_out_channels=(320, 640, 1280, 1280) if full else (32, 64),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
            if full
            else ("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
            if full
            else ("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=text.hidden_size,
            attention_head_dim=8,
            layers_per_block=2 if full else 1,
        ),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _saved(pipeline, folder, dtype)


def save_inpainting_xl(folder: Path, *, channels: int = 9) -> Path:
    """Save a tiny SDXL inpainting pipeline."""
    import diffusers  # noqa: PLC0415 - heavy
    import transformers  # noqa: PLC0415 - heavy

    text = _tiny_text(projection_dim=32)
    words = save_clip_tokenizer(folder.parent / f"{folder.name}-words")
    pipeline = diffusers.StableDiffusionXLInpaintPipeline(
        vae=_autoencoder(full=False),
        text_encoder=transformers.CLIPTextModel(text),
        text_encoder_2=transformers.CLIPTextModelWithProjection(text),
        tokenizer=words,
        tokenizer_2=words,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * text.hidden_size,
            attention_head_dim=(2, 4),
            layers_per_block=1,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )
    return _saved(pipeline, folder, torch.float32)


def save_kandinsky(folder: Path) -> Path:
    """Save a tiny Kandinsky 2.2: the decoder in `folder`, its prior in `folder/prior`."""
    import diffusers  # noqa: PLC0415 - heavy
    import transformers  # noqa: PLC0415 - heavy

    width = 32
    words = save_clip_tokenizer(folder.parent / f"{folder.name}-words")
    text = _tiny_text(projection_dim=width)
    vision = transformers.CLIPVisionConfig(
        hidden_size=width,
        image_size=64,
        projection_dim=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        patch_size=16,
    )
    prior = diffusers.KandinskyV22PriorPipeline(
        prior=diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=12, embedding_dim=width, num_layers=1, additional_embeddings=4
        ),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        text_encoder=transformers.CLIPTextModelWithProjection(text),
        tokenizer=words,
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        image_processor=transformers.CLIPImageProcessor(crop_size=64, size=64),
    )
    decoder = diffusers.KandinskyV22InpaintPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=9,
            out_channels=8,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            encoder_hid_dim=width,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=width,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            class_embed_type=None,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        movq=diffusers.VQModel(
            block_out_channels=(width, 2 * width),
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
    )
    _saved(decoder, folder, torch.float32)
    _saved(prior, folder / "prior", torch.float32)
    return folder


def save_lora(folder: Path, pipeline: Path) -> Path:
    """Save a LoRA of random matrices for a pipeline's network, in the layout in which LoRAs are published."""
    import diffusers  # noqa: PLC0415 - heavy
    import peft  # noqa: PLC0415 - heavy
    from safetensors.torch import save_file  # noqa: PLC0415 - heavy

    network = diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet")
    layers = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj"]
    network.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=layers))
    matrices = {f"unet.{name}": matrix for name, matrix in peft.get_peft_model_state_dict(network).items()}
    folder.mkdir(parents=True)
    published = diffusers.utils.convert_state_dict_to_kohya(matrices)
    save_file(
        {name: matrix.contiguous() for name, matrix in published.items()}, folder / "pytorch_lora_weights.safetensors"
    )
    return folder


def save_clip_tokenizer(folder: Path) -> Any:
    """Save and return a CLIP tokenizer that spells everything letter by letter."""
    import transformers  # noqa: PLC0415 - heavy

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=77,
        pad_token="<|endoftext|>",
    )


def _tiny_text(**options: Any) -> Any:
    import transformers  # noqa: PLC0415 - heavy

    return transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=1000, **options
    )


def _autoencoder(full: bool) -> Any:
    import diffusers  # noqa: PLC0415 - heavy

    widths = (128, 256, 512, 512) if full else (16, 16, 16, 16)
    return diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
        layers_per_block=2 if full else 1,
        norm_num_groups=32 if full else 8,
        sample_size=512 if full else 64,
        scaling_factor=0.18215,
    )


def _saved(pipeline: Any, folder: Path, dtype: torch.dtype) -> Path:
    if dtype != torch.float32:
        pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
