"""From a label and a colour to one sentence, in English and in Russian. Knows grammar, not pictures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shared.recipe import Language
    from workers.captioning.vocabulary import Gender, Label

# Spelt with a vowel but said with a consonant (a unicycle, a European), and the reverse (an hour, an X-ray).
_CONSONANT_SOUND = re.compile(r"(uni(?!n|m)|eu|ewe|one\b|one-|once|use|usu|uten|ukulele|u-|u\b)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(hour|heir|honest|hono)", re.IGNORECASE)
_INITIALISM = re.compile(r"(?:[A-Z]{2,}|[A-Z])(?![a-z])")
_LETTERS_SAID_WITH_A_VOWEL = "AEFHILMNORSX"

# Stem and kind of ending; "multicoloured" is an adjective of its own, never "of … colour".
_RUSSIAN: dict[str, tuple[str, Literal["hard", "soft", "oy"]]] = {
    "black": ("чёрн", "hard"),
    "white": ("бел", "hard"),
    "grey": ("сер", "hard"),
    "beige": ("бежев", "hard"),
    "brown": ("коричнев", "hard"),
    "red": ("красн", "hard"),
    "burgundy": ("бордов", "hard"),
    "orange": ("оранжев", "hard"),
    "yellow": ("жёлт", "hard"),
    "olive": ("оливков", "hard"),
    "green": ("зелён", "hard"),
    "turquoise": ("бирюзов", "hard"),
    "teal": ("тёмно-бирюзов", "hard"),
    "light blue": ("голуб", "oy"),
    "blue": ("син", "soft"),
    "navy": ("тёмно-син", "soft"),
    "purple": ("фиолетов", "hard"),
    "pink": ("розов", "hard"),
    "multicoloured": ("разноцветн", "hard"),
}
COLORS = tuple(_RUSSIAN)
"""English names of all colours a caption can name."""

_ENDINGS = {
    "hard": {"m": "ый", "f": "ая", "n": "ое", "p": "ые", "of": "ого"},
    "oy": {"m": "ой", "f": "ая", "n": "ое", "p": "ые", "of": "ого"},
    "soft": {"m": "ий", "f": "яя", "n": "ее", "p": "ие", "of": "его"},
}


def caption(label: Label | None, color: str | None, language: Language) -> str:
    """Write one sentence with a capital and a full stop.

    `label` is None when it is not known what the product is: then only its colour is told. `color` is one of `COLORS` or None. A
    label that is not `coloured` keeps its colour to itself.
    """
    if label is None:
        return _unknown(color, language)
    told = color if color and label.coloured else None
    if language == "ru":
        return _sentence(f"{russian_color(told, label.ru_gender)} {label.ru}" if told else label.ru)
    words = f"{told} {label.en}" if told else label.en
    return _sentence(f"{article(words)} {words}" if label.en_number == "s" else words)


def article(words: str) -> str:
    """Return `a` or `an` by the sound that `words` begins with."""
    if match := _INITIALISM.match(words):
        return "an" if match.group()[0] in _LETTERS_SAID_WITH_A_VOWEL else "a"
    if _CONSONANT_SOUND.match(words):
        return "a"
    return "an" if words[0].lower() in "aeiou" or _VOWEL_SOUND.match(words) else "a"


def russian_color(color: str, form: Gender | Literal["of"] = "m") -> str:
    """Return the Russian adjective in the nominative of a gender, or in the genitive (`of`) that stands before «цвета»."""
    stem, kind = _RUSSIAN[color]
    return stem + _ENDINGS[kind][form]


def _unknown(color: str | None, language: Language) -> str:
    if language == "en":
        return _sentence(f"{article(color)} {color} product") if color else "A product."
    if color is None:
        return "Товар."
    if color == "multicoloured":
        return "Разноцветный товар."
    return f"Товар {russian_color(color, 'of')} цвета."


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
