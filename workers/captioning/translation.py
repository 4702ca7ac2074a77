"""Translation by MarianMT (opus-mt)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import langcodes
import torch
import transformers

from shared.errors import ModelCorruptError, UsageError
from workers.captioning.guards import translation_faults
from workers.captioning.weights import check_whole, reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SENTENCE = "A red shoe on a white background."
PROBES: Mapping[str, tuple[str, ...]] = {
    "ru": ("красн", "бел"),
    "de": ("rot", "weiß"),
    "fr": ("rouge", "blanc"),
    "es": ("roj", "blanc"),
}
"""Parts of words that any right translation of `SENTENCE` holds, by language; of others only loops, untranslated and foreign letters are told."""
MAX_TOKENS = 200
_NEAR = 5
# CLDR's distance of languages up to which a model's variant of one is taken for it (Bokmål for Norwegian, but no Danish).
ATTEMPTS: tuple[Mapping[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 4, "no_repeat_ngram_size": 3},
    {"num_beams": 6, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
)
"""How a translation is made, and made again while something is wrong with it."""


class Translator:
    """English into one language. Called from one thread."""

    def __init__(self, folder: Path, weights: str, language: str, device: torch.device, dtype: torch.dtype) -> None:
        """Read the model in the hub's layout and try a sentence. Raises `ModelCorruptError`, `UsageError`."""
        self.language = language
        self._device = device
        with reading(folder, "opus-mt model", weights):
            self._tokenizer = transformers.MarianTokenizer.from_pretrained(folder, local_files_only=True)
            model, info = transformers.MarianMTModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        check_whole(info, folder, weights)
        check_head(model, folder, weights)
        self._model = model.to(device).eval().requires_grad_(False)
        self._target = target_token(self._tokenizer.supported_language_codes, weights, language)
        # A model of one's own may know other words.
        if weights.rpartition("/")[2].startswith("opus-mt-"):
            self._probe(weights, PROBES.get(language, ()))

    @torch.inference_mode()
    def translate(
        self, texts: Sequence[str], beams: int | Literal["published"] = 1
    ) -> tuple[list[str], list[list[str]]]:
        """Return the translations, in order, and what is still wrong with each after `ATTEMPTS`.

        The first attempt is with so many `beams`, or with as many as the weights come with.
        """
        first: Mapping[str, Any] = {} if beams == "published" else {"num_beams": beams}
        done = [""] * len(texts)
        faults: list[list[str]] = [[] for _ in texts]
        waiting = [i for i, text in enumerate(texts) if text.strip()]
        for options in (first, *ATTEMPTS[1:]):
            if not waiting:
                break
            for i, text in zip(waiting, self._once([texts[i] for i in waiting], options), strict=True):
                done[i] = text
                faults[i] = translation_faults(text, texts[i], self.language)
            waiting = [i for i in waiting if faults[i]]
        return done, faults

    def _once(self, texts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        asked = [self._target + text for text in texts]
        tokens = self._tokenizer(asked, return_tensors="pt", padding=True, truncation=True).to(self._device)
        output = self._model.generate(**tokens, max_new_tokens=MAX_TOKENS, do_sample=False, **options)
        found: list[str] = self._tokenizer.batch_decode(output, skip_special_tokens=True)
        return [text.strip() for text in found]

    def _probe(self, weights: str, parts: Sequence[str]) -> None:
        text = self._once([SENTENCE], ATTEMPTS[0])[0]
        if translation_faults(text, SENTENCE, self.language) or not all(part in text.lower() for part in parts):
            msg = f"{weights} translates {SENTENCE!r} as {text[:80]!r}: its weights are damaged, fetch it again"
            raise ModelCorruptError(msg)


def target_token(codes: Sequence[str], weights: str, language: str) -> str:
    """Return the token that makes a model of several languages write this one; none is needed where it knows but one.

    `codes` are the model's own, such as `>>rus<<` or `>>srp_Cyrl<<`. Raises `UsageError` when none is near enough.
    """
    if not codes:
        return ""
    known = {code[2:-2]: code for code in codes if langcodes.tag_is_valid(code[2:-2])}
    found, distance = langcodes.closest_match(language, list(known), max_distance=_NEAR)
    if distance > _NEAR:
        some = ", ".join(sorted(known)[:10])
        raise UsageError(f"{weights} writes {some}, but not {language}: name another in caption.translators.{language}")
    return known[found]


def check_head(model: Any, folder: Path, weights: str) -> None:
    """Make sure that the output layer is the embeddings where the two are one: a layer of its own would be random. Raises `ModelCorruptError`."""
    head, words = model.get_output_embeddings().weight, model.get_decoder().get_input_embeddings().weight
    if model.config.tie_word_embeddings and not torch.equal(head, words):
        raise ModelCorruptError(
            f"{folder}: the output layer is not the embeddings it is tied to: fetch {weights} again"
        )
