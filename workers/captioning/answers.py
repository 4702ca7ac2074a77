"""What a vision-language model is asked for, and what its answer must look like."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from workers.captioning.guards import stopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NAMES = {
    "en": "English",
    "ru": "Russian",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "uk": "Ukrainian",
}
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Attributes(BaseModel):
    """What can be seen of the product; empty where it cannot."""

    model_config = ConfigDict(extra="ignore")

    color: Annotated[str, Field(max_length=60)] = ""
    material: Annotated[str, Field(max_length=60)] = ""
    category: Annotated[str, Field(max_length=80)] = ""


class Entry(BaseModel):
    """The texts of one language."""

    model_config = ConfigDict(extra="ignore")

    title: Annotated[Text, Field(max_length=150)]
    description: Annotated[Text, Field(max_length=2000)]
    alt_text: Annotated[Text, Field(max_length=300)]
    attributes: Attributes = Attributes()

    @property
    def texts(self) -> tuple[str, str, str]:
        """What people read."""
        return self.title, self.description, self.alt_text


class AnswerError(ValueError):
    """The answer is not what was asked for; the message tells the model what to change."""


def question(languages: Sequence[str], instructions: str, fields: Mapping[str, Any]) -> str:
    """Return what the model is asked about a picture; what the merchant says of the item is given as context."""
    asked = ", ".join(f'"{code}" ({NAMES.get(code, code)})' for code in languages)
    known = [f"{name}: {fields[name]}" for name in ("title", "category") if fields.get(name)]
    form = (
        f"Answer with one JSON object with the keys {asked}; each holds title (at most 10 words), description (2 or 3 "
        "sentences), alt_text (1 sentence) and attributes with color, material and category, all in that language."
    )
    parts = [
        "This is a product photo for a shop's catalogue.",
        f"The merchant says: {'; '.join(known)}." if known else "",
        "Describe the product only, not the background. State what can be seen, no brand unless it is readable, no praise.",
        instructions,
        form,
    ]
    return " ".join(part for part in parts if part)


def read_answer(text: str, languages: Sequence[str]) -> dict[str, Entry]:
    """Read the entries of every language from a model's answer. Raises `AnswerError`."""
    data = _object(text)
    missing = [code for code in languages if not isinstance(data.get(code), dict)]
    if missing:
        raise AnswerError(f"the keys {', '.join(missing)} are missing or hold no object")
    try:
        return {code: Entry.model_validate(data[code]) for code in languages}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AnswerError(f"{where}: {first['msg'].lower()}") from None


def _object(text: str) -> dict[str, Any]:
    # Models like to wrap their JSON in a fence or in a sentence.
    fenced = re.search(r"```(?:json)?\s*(\{.*\})\s*```", text, re.DOTALL)
    body = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        cut = text.count("{") > text.count("}")
        raise AnswerError(
            "the answer breaks off before its end: be briefer" if cut else "the answer is not one JSON object"
        ) from None
    if not isinstance(data, dict):
        raise AnswerError("the answer is not one JSON object")
    return data


def objections(faults: Iterable[str], entries: Mapping[str, Entry], stop_words: Iterable[str]) -> str:
    """Return in words what the guards object to."""
    texts = [text for entry in entries.values() for text in entry.texts]
    found = [word for word in stop_words if any(stopped(text, word) for text in texts)]
    said = {
        "caption_empty": "a text is empty",
        "caption_loop": "a text repeats itself",
        "caption_stop_word": f"these words must not appear: {', '.join(found)}",
        "translation_missing": "a text is not in the language of its key",
    }
    return "; ".join(said.get(fault, fault.replace("_", " ")) for fault in faults)


def repair(problem: str) -> str:
    """Return what the model is told when its answer is not right."""
    return f"That cannot be used: {problem}. Answer again with the whole JSON object and nothing else."
