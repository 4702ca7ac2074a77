"""The recipe's choices of caption."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from shared.recipe.section import Fraction, ModelSection, Precision, Weights

MAX_LANGUAGES = 20
"""Of one item; each is a translation."""
Language = Literal["en", "ru"]
LanguageCode = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]
"""ISO 639."""
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]


class LabelsCaption(ModelSection):
    """ImageNet label and dominant colour in sentences from our own table. Starter model, no download, CPU."""

    model: Literal["labels"] = "labels"
    languages: tuple[Language, ...] = Field(default=("en", "ru"), max_length=MAX_LANGUAGES)
    min_confidence: Fraction = 0.5
    """Below it the caption says only the colour, and the item needs review. At half, the name is likelier than all others together."""


class NoCaption(ModelSection):
    """No caption; the item's record is still written."""

    model: Literal["none"]


class Blip2Caption(ModelSection):
    """BLIP-2 writes an English sentence, opus-mt translates it."""

    loads: ClassVar[tuple[str, ...]] = ("weights", "precision", "quantize", "languages", "translators")

    gpu_batch: ClassVar[int | None] = 64
    # Writing reads all weights once for each word of a batch, whatever its size.

    model: Literal["blip2"]
    weights: Weights = "blip2-opt-2.7b"
    """`blip2-opt-2.7b` (not for commercial use), `blip2-flan-t5-xl`, a hub id with its revision, or a local folder."""
    precision: Precision = "auto"
    quantize: Literal["none", "int8"] = "none"
    source: Literal["image", "cutout", "source"] = "image"
    """What is described: the finished picture, the cut-out on white, or the photo."""
    prompt: Annotated[str, Field(max_length=300)] = ""
    """The beginning of the sentence, or a question."""
    max_tokens: int = Field(default=30, ge=4, le=200)
    beams: int = Field(default=1, ge=1, le=8)
    languages: tuple[LanguageCode, ...] = Field(default=("en", "ru"), min_length=1, max_length=MAX_LANGUAGES)
    translators: dict[LanguageCode, Weights] = Field(default_factory=dict, max_length=MAX_LANGUAGES)
    """Models from English by language; `opus-mt-en-<language>` where none is given. One that writes several is told which."""
    translation_beams: Annotated[int, Field(ge=1, le=8)] | Literal["published"] = 1
    """Beams of a translation; `published` is as many as the weights come with, several times slower."""
    stop_words: tuple[Word, ...] = Field(default=(), max_length=1000)
    """Words, such as brand names that the model invents, that no caption may hold."""


class VlmCaption(ModelSection):
    """A vision-language model writes title, description, alt text and attributes in the languages asked for."""

    loads: ClassVar[tuple[str, ...]] = ("weights", "precision")

    item_fields: ClassVar[tuple[str, ...]] = ("title", "category")

    gpu_batch: ClassVar[int | None] = 16
    # As for BLIP-2, but pictures are a thousand words each, and answers hundreds, which are all kept in memory.

    model: Literal["vlm"]
    weights: Weights = "qwen-vl"
    """`qwen-vl`, a hub id with its revision, or a local folder; none that needs code of its own."""
    precision: Precision = "auto"
    source: Literal["image", "cutout", "source"] = "image"
    instructions: Annotated[str, Field(max_length=2000)] = ""
    """Added to what the model is asked: tone of voice, what to leave out."""
    max_tokens: int = Field(default=800, ge=16, le=2000)
    """Of a whole answer: two languages are about 450."""
    languages: tuple[LanguageCode, ...] = Field(default=("en", "ru"), min_length=1, max_length=MAX_LANGUAGES)
    stop_words: tuple[Word, ...] = Field(default=(), max_length=1000)


Caption = Annotated[LabelsCaption | NoCaption | Blip2Caption | VlmCaption, Field(discriminator="model")]
