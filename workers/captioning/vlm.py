"""A vision-language model writes the item's texts straight in the languages asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared.errors import ModelCorruptError
from shared.models import locate
from shared.recipe import VlmCaption
from workers.captioning.answers import AnswerError, Entry, question, read_answer, repair
from workers.captioning.guards import caption_faults, translation_faults
from workers.captioning.views import view
from workers.stage import Artifact, Result

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from pathlib import Path

    from PIL import Image

    from shared.recipe import Recipe
    from workers.stage import Work

SIDE = 768
"""Longest side, in pixels, of the picture that is shown: more would only be more tokens."""
_ENGLISH = "en"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture and what is asked about it."""

    picture: Image.Image
    question: str
    settings: VlmCaption


@dataclass(slots=True)
class Told:
    """What the model told of one picture."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """By language; empty when no answer could be used."""
    attempts: int = 1
    problem: str = ""
    """Why the last answer could not be used."""


class VlmModel:
    """Satisfies `workers.stage.Model`: one question per picture, answered in batches, asked again once where the answer cannot be used."""

    name = "vlm"

    def __init__(self, section: VlmCaption, models_dir: Path, *, max_bytes: int, max_pixels: int) -> None:
        self._section = section
        self._models_dir = models_dir
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        self._processor: Any = None
        self._network: Any = None
        self._device: Any = None

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read the picture that the recipe has described."""
        return (_section(recipe).source,)

    @property
    def max_batch(self) -> None:
        """Leave it to the settings."""

    def load(self, device: str, threads: int) -> None:
        """Read the weights and answer about one grey square. Raises `ModelMissingError`, `ModelCorruptError`."""
        import torch  # noqa: PLC0415 - heavy
        import transformers  # noqa: PLC0415 - heavy
        from PIL import Image  # noqa: PLC0415 - only here at run time

        from workers.devices import device_for, dtype_for  # noqa: PLC0415 - imports torch

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._device = device_for(device)
        dtype = dtype_for(self._section.precision, self._device, torch.bfloat16)
        folder = locate(self._section.weights, self._models_dir)
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            network, info = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            first = str(error).partition("\n")[0]
            weights = self._section.weights
            raise ModelCorruptError(f"{folder} is no vision-language model: fetch {weights} again ({first})") from error
        if info["missing_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3])
            raise ModelCorruptError(f"{folder} lacks weights ({some}): fetch {self._section.weights} again")
        if not self._processor.chat_template:
            raise ModelCorruptError(f"{folder} has no chat template: take a model that was trained to answer")
        self._processor.tokenizer.padding_side = "left"  # answers begin where the questions end
        self._network = network.to(self._device).eval().requires_grad_(False)
        grey = Image.new("RGB", (64, 64), (127, 127, 127))
        self._answer([(grey, [_user("?")])], 1)

    def prepare(self, work: Work) -> Prepared:
        """Decode, shrink, and write the question. Raises `PictureError`."""
        section = _section(work.recipe)
        picture = view(work, section.source, **self._limits)
        picture.thumbnail((SIDE, SIDE))
        return Prepared(picture, question(section.languages, section.instructions, work.fields), section)

    def bucket(self, item: Prepared) -> Hashable:
        """Share a batch among items that are asked for the same."""
        return item.settings

    def infer(self, batch: Sequence[Prepared]) -> list[Told]:
        """Ask about every picture, and once more where the answer cannot be used."""
        settings = batch[0].settings
        asked = [(item.picture, [_user(item.question)]) for item in batch]
        texts = self._answer(asked, settings.max_tokens)
        told = [_read(text, settings, 1) for text in texts]
        again = [i for i, answer in enumerate(told) if answer.problem]
        if again:
            talks = [
                (batch[i].picture, [*asked[i][1], _assistant(texts[i]), _text(repair(AnswerError(told[i].problem)))])
                for i in again
            ]
            for i, text in zip(again, self._answer(talks, settings.max_tokens), strict=True):
                told[i] = _read(text, settings, 2)
        return told

    def _answer(self, talks: Sequence[tuple[Image.Image, list[dict[str, Any]]]], tokens: int) -> list[str]:
        import torch  # noqa: PLC0415 - heavy

        texts = [self._processor.apply_chat_template(talk, add_generation_prompt=True) for _, talk in talks]
        pictures = [[picture] for picture, _ in talks]
        inputs = self._processor(text=texts, images=pictures, padding=True, return_tensors="pt").to(self._device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._network.dtype)
        with torch.inference_mode():
            output = self._network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        found: list[str] = self._processor.batch_decode(answers, skip_special_tokens=True)
        return found

    def finish(self, work: Work, item: Prepared, output: Told) -> Result:
        """Write the texts; an answer that could not be used leaves none, and says so."""
        del item
        settings = _section(work.recipe)
        record = {
            "captions": {code: entry.description for code, entry in output.entries.items()},
            "details": {code: entry.model_dump() for code, entry in output.entries.items()},
            "attempts": output.attempts,
        }
        reasons = ["caption_schema"] if output.problem else _faults(output.entries, settings)
        data = json.dumps(record, ensure_ascii=False).encode()
        measures = {"attempts": output.attempts, **({"problem": output.problem[:200]} if output.problem else {})}
        return Result({"caption": Artifact(data, "application/json", "json")}, tuple(dict.fromkeys(reasons)), measures)


def _read(text: str, settings: VlmCaption, attempt: int) -> Told:
    try:
        return Told(read_answer(text, settings.languages), attempt)
    except AnswerError as error:
        return Told({}, attempt, str(error))


def _faults(entries: dict[str, Entry], settings: VlmCaption) -> list[str]:
    """Return what the guards object to in any of the texts."""
    faults = []
    english = entries.get(_ENGLISH)
    for code, entry in entries.items():
        for text in (entry.title, entry.description, entry.alt_text):
            # A description of three sentences is no loop and no novel: the caption's limit on words is for one sentence.
            faults += [fault for fault in caption_faults(text, "", settings.stop_words) if fault != "caption_long"]
        if code != _ENGLISH:
            faults += translation_faults(entry.description, english.description if english else "", code)
    return faults


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _text(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _section(recipe: Recipe) -> VlmCaption:
    section = recipe.caption
    if not isinstance(section, VlmCaption):
        raise TypeError(f"the item was sent to 'vlm' with a recipe for {section.model!r}")
    return section
