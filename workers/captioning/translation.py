"""Translation by MarianMT (opus-mt)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from shared.errors import ModelCorruptError
from workers.captioning.guards import loops, translation_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PROBES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "opus-mt-en-ru": ("A red shoe on a white background.", ("красн", "бел")),
    "opus-mt-en-de": ("A red shoe on a white background.", ("rot", "weiß")),
    "opus-mt-en-fr": ("A red shoe on a white background.", ("rouge", "blanc")),
    "opus-mt-en-es": ("A red shoe on a white background.", ("roj", "blanc")),
}
"""A sentence per preset, and parts of words that any right translation of it holds."""
MAX_TOKENS = 200
ATTEMPTS: tuple[Mapping[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 4, "no_repeat_ngram_size": 3},
    {"num_beams": 6, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
)
"""How a translation is made, and made again while something is wrong with it."""


class Translator:
    """English into one language. Called from one thread."""

    def __init__(self, folder: Path, weights: str, language: str, device: torch.device, dtype: torch.dtype) -> None:
        """Read the model in the hub's layout and try a sentence. Raises `ModelCorruptError`."""
        self.language = language
        self._device = device
        try:
            self._tokenizer = transformers.MarianTokenizer.from_pretrained(folder, local_files_only=True)
            model, info = transformers.MarianMTModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            first = str(error).partition("\n")[0]
            raise ModelCorruptError(f"{folder} is no opus-mt model: fetch {weights} again ({first})") from error
        check_whole(model, info, folder)
        self._model = model.to(device).eval().requires_grad_(False)
        if weights in PROBES:
            self._probe(weights, *PROBES[weights])

    @torch.inference_mode()
    def translate(self, texts: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Return the translations, in order, and what is still wrong with each after `ATTEMPTS`."""
        # Texts of a length together waste no padding; a batch is at most what the caption stage was given.
        done = [""] * len(texts)
        faults: list[list[str]] = [[] for _ in texts]
        waiting = [i for i, text in enumerate(texts) if text.strip()]
        for options in ATTEMPTS:
            if not waiting:
                break
            for i, text in zip(waiting, self._once([texts[i] for i in waiting], options), strict=True):
                done[i] = text
                faults[i] = translation_faults(text, texts[i], self.language)
            waiting = [i for i in waiting if faults[i]]
        return done, faults

    def _once(self, texts: list[str], options: Mapping[str, Any]) -> list[str]:
        tokens = self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(self._device)
        output = self._model.generate(**tokens, max_new_tokens=MAX_TOKENS, do_sample=False, **options)
        found: list[str] = self._tokenizer.batch_decode(output, skip_special_tokens=True)
        return [text.strip() for text in found]

    def _probe(self, weights: str, sentence: str, parts: Sequence[str]) -> None:
        text = self._once([sentence], ATTEMPTS[0])[0]
        if loops(text) or not all(part in text.lower() for part in parts):
            msg = f"{weights} translates {sentence!r} as {text[:80]!r}: its weights are damaged, fetch it again"
            raise ModelCorruptError(msg)


def check_whole(model: Any, info: Mapping[str, Any], folder: Path) -> None:
    """Make sure that every weight came from the files.

    A head that is neither in them nor tied to the embeddings is random, and gives fluent nonsense without any error. Raises
    `ModelCorruptError`.
    """
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelCorruptError(f"{folder} lacks weights ({', '.join(missing[:3])}): fetch the model again")
    head, words = model.get_output_embeddings().weight, model.get_decoder().get_input_embeddings().weight
    if model.config.tie_word_embeddings and not torch.equal(head, words):
        raise ModelCorruptError(
            f"{folder}: the output layer is not the embeddings it is tied to: fetch the model again"
        )
