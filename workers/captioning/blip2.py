"""BLIP-2 describes, opus-mt translates."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import ModelCorruptError, UsageError
from shared.models import locate
from shared.recipe import Blip2Caption
from workers.captioning.guards import caption_faults
from workers.captioning.views import view
from workers.stage import Artifact, Result

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from shared.recipe import Recipe
    from workers.captioning.translation import Translator
    from workers.stage import Work

ATTEMPTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 3},
    {"num_beams": 5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
)
"""What is changed for a caption, and again while something is wrong with it."""
SOURCE_LANGUAGE = "en"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as the network takes it."""

    pixels: NDArray[np.float32]
    """3 x height x width, normalised."""
    settings: Blip2Caption


@dataclass(slots=True)
class Described:
    """What one picture was given."""

    captions: dict[str, str] = field(default_factory=dict)
    """By language."""
    attempts: int = 1
    faults: list[str] = field(default_factory=list)
    """What is still wrong after every attempt."""


class Blip2Model:
    """Satisfies `workers.stage.Model`: greedy captions in batches, then their translations in batches."""

    name = "blip2"

    def __init__(self, section: Blip2Caption, models_dir: Path, *, max_bytes: int, max_pixels: int) -> None:
        self._section = section
        self._models_dir = models_dir
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        self._pictures: Any = None
        self._tokenizer: Any = None
        self._network: Any = None
        self._device: Any = None
        self._translators: dict[str, Translator] = {}

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the picture that the recipe has described."""
        return (_section(recipe).source,)

    @property
    def max_batch(self) -> int | None:
        """Fill a GPU; leave a CPU to the settings."""
        return self._section.gpu_batch if getattr(self._device, "type", "cpu") == "cuda" else None

    def load(self, device: str, threads: int) -> None:
        """Read the weights and describe one grey square. Raises `ModelMissingError`, `ModelCorruptError`, `UsageError`."""
        import torch  # noqa: PLC0415 - heavy

        from workers.captioning.translation import Translator  # noqa: PLC0415 - imports transformers
        from workers.devices import device_for, dtype_for  # noqa: PLC0415 - imports torch

        torch.set_num_threads(threads)
        section = self._section
        self._device = device_for(device)
        dtype = dtype_for(section.precision, self._device)
        folder = locate(section.weights, self._models_dir)
        self._pictures, self._tokenizer = read_processors(folder, section.weights)
        self._network = read_blip2(folder, section, self._device, dtype)
        for language in section.languages:
            if language != SOURCE_LANGUAGE:
                weights = section.translators.get(language, f"opus-mt-en-{language}")
                place = locate(weights, self._models_dir)
                self._translators[language] = Translator(place, weights, language, self._device, dtype)
        side = self._network.config.vision_config.image_size
        self.infer([Prepared(np.zeros((3, side, side), np.float32), section)])

    def prepare(self, work: Work) -> Prepared:
        """Decode and normalise. Raises `PictureError`."""
        section = _section(work.recipe)
        picture = view(work, section.source, **self._limits)
        values = self._pictures(picture, return_tensors="np")["pixel_values"][0]
        return Prepared(values, section)

    def bucket(self, item: Prepared) -> Hashable:
        """Share a batch among pictures that are asked for in the same way."""
        settings = item.settings
        return settings.prompt, settings.max_tokens, settings.beams, settings.translation_beams, settings.stop_words

    def infer(self, batch: Sequence[Prepared]) -> list[Described]:
        """Describe every picture, again with changed settings where a guard objects, and translate."""
        settings = batch[0].settings
        done = [Described() for _ in batch]
        waiting = list(range(len(batch)))
        for number, changes in enumerate(ATTEMPTS, 1):
            found = self._describe([batch[i].pixels for i in waiting], settings, changes)
            for i, (text, ended) in zip(waiting, found, strict=True):
                faults = caption_faults(text, settings.prompt, settings.stop_words, ended=ended)
                done[i] = Described({SOURCE_LANGUAGE: text}, number, faults)
            waiting = [i for i in waiting if done[i].faults]
            if not waiting:
                break
        english = [item.captions[SOURCE_LANGUAGE] for item in done]
        for language, translator in self._translators.items():
            texts, wrong = translator.translate(english, settings.translation_beams)
            for item, text, faults in zip(done, texts, wrong, strict=True):
                item.captions[language] = text
                item.faults += faults
        return done

    def _describe(
        self, pixels: Sequence[NDArray[np.float32]], settings: Blip2Caption, changes: Mapping[str, Any]
    ) -> list[tuple[str, bool]]:
        """Return the captions, each with whether it came to its end within the tokens that the recipe grants."""
        import torch  # noqa: PLC0415 - heavy

        network, tokenizer = self._network, self._tokenizer
        prompt = prompt_ids(network.config, tokenizer, settings.prompt)
        options: dict[str, Any] = {**changes, "num_beams": max(settings.beams, changes.get("num_beams", 1))}
        if changes and settings.stop_words:
            options["bad_words_ids"] = spellings(settings.stop_words, tokenizer)
        with torch.inference_mode():
            ids = torch.tensor([prompt] * len(pixels), device=self._device)
            # The networks behind it take halves of their own accord.
            values = torch.from_numpy(np.stack(pixels)).to(self._device)
            output = network.generate(
                pixel_values=values, input_ids=ids, max_new_tokens=settings.max_tokens, do_sample=False, **options
            )
        if not network.config.text_config.is_encoder_decoder:  # a decoder answers with the prompt before the caption
            output = output[:, len(prompt) :]
        end = torch.tensor(network.language_model.generation_config.eos_token_id, device=output.device)
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        ended = torch.isin(output, end).any(1).tolist()
        return [(" ".join(text.split()), whole) for text, whole in zip(texts, ended, strict=True)]

    def finish(self, work: Work, item: Prepared, output: Described) -> Result:
        """Write the captions in the order asked for."""
        del item
        captions = {language: output.captions[language] for language in _section(work.recipe).languages}
        record = {"captions": captions, "attempts": output.attempts}
        data = json.dumps(record, ensure_ascii=False).encode()
        reasons = tuple(dict.fromkeys(output.faults))
        return Result({"caption": Artifact(data, "application/json")}, reasons, {"attempts": output.attempts})


def read_processors(folder: Path, weights: str) -> tuple[Any, Any]:
    """Read what makes pictures into numbers, and text into tokens, in the hub's layout. Raises `ModelCorruptError`."""
    import transformers  # noqa: PLC0415 - heavy

    from workers.captioning.weights import reading  # noqa: PLC0415 - imports torch

    with reading(folder, "BLIP-2 model", weights):
        pictures = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        # As its file says, whatever class the configuration names: for the published models the library does so too, but
        # knows them by their hub ids, not in a folder.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return pictures, tokenizer


def read_blip2(folder: Path, section: Blip2Caption, device: Any, dtype: Any) -> Any:
    """Read the network in the hub's layout. Raises `ModelCorruptError`, `UsageError`."""
    import transformers  # noqa: PLC0415 - heavy

    from workers.captioning.weights import check_whole, reading  # noqa: PLC0415 - imports torch

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if section.quantize == "int8":
        if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
            raise UsageError("caption.quantize int8 needs a GPU and the package bitsandbytes: install it, or use none")
        options |= {
            "quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True),
            "device_map": {"": device},
        }
    kind: Any = transformers.Blip2ForConditionalGeneration
    with reading(folder, "BLIP-2 model", section.weights):
        network, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    check_whole(info, folder, section.weights)
    if network.config.image_token_index is None:
        # Older revisions of the published models: pictures would never reach the text.
        msg = f"{folder} is of an old revision, without image tokens: fetch {section.weights} again"
        raise ModelCorruptError(msg)
    network = network if section.quantize == "int8" else network.to(device)
    return network.eval().requires_grad_(False)


def prompt_ids(config: Any, tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens before a caption: the places of the picture, then the prompt, or the beginning of a text where there is none."""
    picture = [config.image_token_index] * config.num_query_tokens
    beginning = config.text_config.bos_token_id
    if not prompt and beginning is not None:
        return [*picture, beginning]
    # A prompt that spells the picture's own token would ask for pictures that are none.
    return [*picture, *(token for token in tokenizer(prompt)["input_ids"] if token != config.image_token_index)]


def spellings(stop_words: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the tokens of every word as a text may hold it: within a sentence or at its beginning, in small or capital letters."""
    cases = {case for word in stop_words for case in (word, word.lower(), word.upper(), word.title())}
    found: list[list[int]] = tokenizer(
        [f"{gap}{case}" for case in sorted(cases) for gap in (" ", "")], add_special_tokens=False
    )["input_ids"]
    return [tokens for tokens in found if tokens]


def _section(recipe: Recipe) -> Blip2Caption:
    section = recipe.caption
    if not isinstance(section, Blip2Caption):
        raise TypeError(f"the item was sent to 'blip2' with a recipe for {section.model!r}")
    return section
