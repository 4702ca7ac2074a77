"""A vision-language model writes the item's texts straight in the languages asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared.errors import ModelCorruptError
from shared.models import locate
from shared.recipe import VlmCaption
from workers.captioning.answers import AnswerError, Entry, objections, question, read_answer, repair
from workers.captioning.guards import caption_faults, foreign, translation_faults
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
    """Why no answer could be used."""
    faults: list[str] = field(default_factory=list)
    """What the guards object to in the texts."""


class VlmModel:
    """Satisfies `workers.stage.Model`: one question per picture, answered in batches, asked again once where an answer is not right."""

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
    def max_batch(self) -> int | None:
        """Fill a GPU; leave a CPU to the settings."""
        return self._section.gpu_batch if getattr(self._device, "type", "cpu") == "cuda" else None

    def load(self, device: str, threads: int) -> None:
        """Read the weights and answer about one grey square. Raises `ModelMissingError`, `ModelCorruptError`."""
        import torch  # noqa: PLC0415 - heavy
        import transformers  # noqa: PLC0415 - heavy
        from PIL import Image  # noqa: PLC0415 - only here at run time

        from workers.captioning.weights import check_whole, reading  # noqa: PLC0415 - imports torch
        from workers.devices import device_for, dtype_for  # noqa: PLC0415 - imports torch

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._device = device_for(device)
        dtype = dtype_for(self._section.precision, self._device, torch.bfloat16)
        folder = locate(self._section.weights, self._models_dir)
        with reading(folder, "vision-language model", self._section.weights):
            self._processor = transformers.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            network, info = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        check_whole(info, folder, self._section.weights)
        if not self._processor.chat_template:
            raise ModelCorruptError(f"{folder} has no chat template: take a model that was trained to answer")
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # answers begin where the questions end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._network = network.to(self._device).eval().requires_grad_(False)
        grey = Image.new("RGB", (64, 64), (127, 127, 127))
        self._answer([[_user("?", grey)]], 1)

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
        """Ask about every picture, and once more where the answer cannot be used or a guard objects; the better answer counts."""
        settings = batch[0].settings
        talks = [[_user(item.question, item.picture)] for item in batch]
        texts = self._answer(talks, settings.max_tokens)
        told = [_judge(text, settings, 1) for text in texts]
        again = [i for i, first in enumerate(told) if first.problem or first.faults]
        if again:
            talks = [
                [*talks[i], _message("assistant", texts[i]), _message("user", _objection(told[i], settings))]
                for i in again
            ]
            for i, text in zip(again, self._answer(talks, settings.max_tokens), strict=True):
                second = _judge(text, settings, 2)
                told[i] = min(second, told[i], key=lambda answer: (bool(answer.problem), len(answer.faults)))
                told[i].attempts = 2
        return told

    def _answer(self, talks: Sequence[list[dict[str, Any]]], tokens: int) -> list[str]:
        import torch  # noqa: PLC0415 - heavy

        # What merchants write stays text, even where it spells a control token.
        inputs = self._processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
            processor_kwargs={"padding": True},
        ).to(self._device, self._network.dtype)
        with torch.inference_mode():
            output = self._network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        found: list[str] = self._processor.batch_decode(answers, skip_special_tokens=True)
        return found

    def finish(self, work: Work, item: Prepared, output: Told) -> Result:
        """Write the texts; an answer that could not be used leaves none, and says so."""
        del work, item
        record = {
            "captions": {code: entry.description for code, entry in output.entries.items()},
            "details": {code: entry.model_dump() for code, entry in output.entries.items()},
            "attempts": output.attempts,
        }
        reasons = ["caption_schema"] if output.problem else output.faults
        data = json.dumps(record, ensure_ascii=False).encode()
        measures = {"attempts": output.attempts, **({"problem": output.problem[:200]} if output.problem else {})}
        return Result({"caption": Artifact(data, "application/json")}, tuple(dict.fromkeys(reasons)), measures)


def _judge(text: str, settings: VlmCaption, attempt: int) -> Told:
    try:
        entries = read_answer(text, settings.languages)
    except AnswerError as error:
        return Told({}, attempt, str(error))
    return Told(entries, attempt, "", _faults(entries, settings))


def _objection(answer: Told, settings: VlmCaption) -> str:
    return repair(answer.problem or objections(answer.faults, answer.entries, settings.stop_words))


def _faults(entries: dict[str, Entry], settings: VlmCaption) -> list[str]:
    """Return what the guards object to in any of the texts."""
    faults = []
    english = entries.get(_ENGLISH)
    for code, entry in entries.items():
        for text in entry.texts:
            # A description of three sentences is no loop and no novel: the caption's limit on words is for one sentence.
            faults += [fault for fault in caption_faults(text, "", settings.stop_words) if fault != "caption_long"]
        # A title may be all brand and model number.
        if foreign(entry.description, code) or foreign(entry.alt_text, code):
            faults.append("translation_missing")
        if code != _ENGLISH:
            faults += translation_faults(entry.description, english.description if english else "", code)
    return list(dict.fromkeys(faults))


def _user(text: str, picture: Image.Image) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _section(recipe: Recipe) -> VlmCaption:
    section = recipe.caption
    if not isinstance(section, VlmCaption):
        raise TypeError(f"the item was sent to 'vlm' with a recipe for {section.model!r}")
    return section
