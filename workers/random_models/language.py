"""Models that write: BLIP-2, MarianMT, a vision-language model; and tokenizers that spell."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from workers.random_models.diffusion import Size

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCES = [
    "a red shoe on a white background",
    "a blue mug with a handle",
    "the photo of a small bag on a table",
    "красный ботинок на белом фоне",
    "синяя кружка с ручкой",
    "маленькая сумка на столе",
]


def save_blip2(
    folder: Path,
    *,
    size: Size = "tiny",
    writer: Literal["opt", "t5"] = "opt",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Path:
    """Save a BLIP-2 of the OPT or of the T5 kind; full size is opt-2.7b's, built on `device`."""
    import transformers  # noqa: PLC0415 - heavy

    full = size == "full"
    tokenizer = spelling_tokenizer(opening=writer == "opt", image_token="<image>")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    vision = transformers.Blip2VisionConfig(
        **(
            {}
            if full
            else {
                "hidden_size": 32,
                "intermediate_size": 37,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            }
        )
    )
    qformer = transformers.Blip2QFormerConfig(
        **(
            {"encoder_hidden_size": vision.hidden_size}
            if full
            else {
                "vocab_size": 50,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 37,
                "encoder_hidden_size": 32,
                "cross_attention_frequency": 1,
            }
        )
    )
    config = transformers.Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=_writer(writer, full=full, tokenizer=tokenizer).to_dict(),
        num_query_tokens=32 if full else 4,
        image_token_index=image_token,
    )
    with torch.device(device):
        model = transformers.Blip2ForConditionalGeneration(config)
    side = config.vision_config.image_size
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessor(size={"height": side, "width": side}),
        tokenizer,
        num_query_tokens=config.num_query_tokens,
    )
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _writer(kind: str, *, full: bool, tokenizer: Any) -> Any:
    import transformers  # noqa: PLC0415 - heavy

    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "opt":
        return transformers.OPTConfig(
            **(
                {
                    "hidden_size": 2560,
                    "num_hidden_layers": 32,
                    "num_attention_heads": 32,
                    "ffn_dim": 10240,
                    "vocab_size": 50304,
                    "word_embed_proj_dim": 2560,
                }
                if full
                else {
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "ffn_dim": 37,
                    "vocab_size": len(tokenizer),
                    "word_embed_proj_dim": 32,
                    "max_position_embeddings": 256,
                }
            ),
            **ids,
        )
    return transformers.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        vocab_size=len(tokenizer),
        decoder_start_token_id=tokenizer.pad_token_id,
        **ids,
    )


def save_marian(folder: Path, *, size: Size = "tiny", dtype: torch.dtype = torch.float32) -> Path:
    """Save a MarianMT; full size is opus-mt-en-ru's."""
    import transformers  # noqa: PLC0415 - heavy

    folder.mkdir(parents=True, exist_ok=True)
    pieces = _train_pieces(folder)
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    pad, end = vocabulary["<pad>"], vocabulary["</s>"]
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        source_lang="en",
        target_lang="ru",
    )
    full = size == "full"
    config = transformers.MarianConfig(
        **(
            {
                "d_model": 512,
                "encoder_layers": 6,
                "decoder_layers": 6,
                "encoder_ffn_dim": 2048,
                "decoder_ffn_dim": 2048,
                "encoder_attention_heads": 8,
                "decoder_attention_heads": 8,
                "vocab_size": 62518,
            }
            if full
            else {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_ffn_dim": 37,
                "decoder_ffn_dim": 37,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "vocab_size": len(vocabulary),
                "max_position_embeddings": 256,
            }
        ),
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
    )
    transformers.MarianMTModel(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train_pieces(folder: Path) -> list[str]:
    import sentencepiece  # noqa: PLC0415 - only here

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 20),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=1,
        eos_id=0,
        bos_id=-1,
    )
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model.getvalue())
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [trained.id_to_piece(number) for number in range(trained.get_piece_size())]


def save_vlm(folder: Path) -> Path:
    """Save a tiny Qwen2-VL with its chat template."""
    import transformers  # noqa: PLC0415 - heavy

    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = spelling_tokenizer(opening=False, marks=marks)
    numbers = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    config = transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": numbers["<|im_end|>"],
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        image_token_id=numbers["<|image_pad|>"],
        video_token_id=numbers["<|video_pad|>"],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = numbers["<|im_end|>"]
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=112 * 112),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def spelling_tokenizer(*, opening: bool, image_token: str | None = None, marks: list[str] | None = None) -> Any:
    """Return a tokenizer that spells byte by byte; `opening` texts begin with a mark, the others end with one."""
    import tokenizers  # noqa: PLC0415 - heavy
    import transformers  # noqa: PLC0415 - heavy

    special = ["<pad>", "</s>", "<unk>", *([image_token] if image_token else []), *(marks or [])]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    if not marks:
        order = "</s> $A" if opening else "$A </s>"
        plain.post_processor = tokenizers.processors.TemplateProcessing(
            single=order, special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[*(marks or []), *([image_token] if image_token else [])],
        **({"image_token": image_token} if image_token else {}),
    )
