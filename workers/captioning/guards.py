"""Guards: what is wrong with a text that a model wrote. Pure functions of text."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_WORDS = 80
"""Longer is no caption: BLIP-2's are ten words, and a loop that varies is long."""
_ECHO = 0.8
# Share of a prompt's words at the caption's beginning that makes it an echo.
_GRAM = 3
_REPEATS = 3
# The same three words three times, or the same word five times running, is a loop.
_RUN = 5
_STUTTER = re.compile(r"([^\W\d_]{1,20}?)\1{5,}")
# The same letters six times running: a loop within a word, or in a script that writes no spaces.
_SCRIPTS: Mapping[str, str | tuple[str, ...]] = {
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk", "sr", "kk"), "CYRILLIC"),
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sk", "sl", "hr", "ro", "hu"), "LATIN"),
    **dict.fromkeys(("da", "no", "nb", "sv", "fi", "et", "lv", "lt", "tr", "id", "vi"), "LATIN"),
    **dict.fromkeys(("ar", "fa", "ur"), "ARABIC"),
    "el": "GREEK",
    "he": "HEBREW",
    "hi": "DEVANAGARI",
    "ka": "GEORGIAN",
    "hy": "ARMENIAN",
    "th": "THAI",
    "ko": "HANGUL",
    "zh": "CJK",
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
}
# How the names of a language's letters begin: their script alone tells that a text is not in it.
_FOREIGN = 0.5
_FOREIGN_DENSE = 0.8
# Share of letters in another script from which a text counts as untranslated: brand names may stay Latin.
_DENSE = ("zh", "ja", "ko")
# Of which one character says as much as several letters of a name.


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return "".join(char if _spells(char) else " " for char in text.lower()).split()


def _spells(char: str) -> bool:
    # Letters, numbers, and the marks that are vowels in Hindi or Thai.
    return unicodedata.category(char)[0] in "LMN"


def loops(text: str) -> bool:
    """Tell whether a text repeats itself: three words three times, one word five times running, the same letters six times."""
    found = words(text)
    if _STUTTER.search(text):
        return True
    grams = Counter(zip(*(found[i:] for i in range(_GRAM)), strict=False))
    if grams and grams.most_common(1)[0][1] >= _REPEATS:
        return True
    run = 1
    for before, word in itertools.pairwise(found):
        run = run + 1 if word == before else 1
        if run >= _RUN:
            return True
    return False


def caption_faults(text: str, prompt: str = "", stop_words: Iterable[str] = (), *, ended: bool = True) -> list[str]:
    """Return what is wrong with a caption.

    Of `caption_empty`, `caption_loop`, `caption_echo`, `caption_long`, `caption_stop_word`, and `caption_cut` where the model did
    not come to an end within its tokens.
    """
    # What spells words less than half of the time is no sentence, but bytes that did not become words.
    spelled = sum(map(_spells, text))
    if not any(char.isalpha() for char in text) or 2 * spelled < len("".join(text.split())):
        return ["caption_empty"]
    found, asked = words(text), words(prompt)
    faults = []
    if loops(text):
        faults.append("caption_loop")
    if len(asked) > 1:
        same = sum(one == two for one, two in zip(found, asked, strict=False))
        if same >= _ECHO * len(asked):
            faults.append("caption_echo")
    if len(found) > MAX_WORDS:
        faults.append("caption_long")
    if any(stopped(text, word) for word in stop_words):
        faults.append("caption_stop_word")
    if not ended:
        faults.append("caption_cut")
    return faults


def stopped(text: str, word: str) -> bool:
    """Tell whether a text holds a word or phrase, whatever its case, and not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def translation_faults(text: str, source: str, language: str) -> list[str]:
    """Return what is wrong with a translation of `source`: of `translation_empty`, `translation_loop` and `translation_missing`."""
    if not any(char.isalpha() for char in text):
        return ["translation_empty"]
    faults = ["translation_loop"] if loops(text) and not loops(source) else []
    # One or two words may well be the same in two languages.
    same = len(words(source)) > 2 and words(text) == words(source)  # noqa: PLR2004 - see above
    return [*faults, "translation_missing"] if same or foreign(text, language) else faults


def foreign(text: str, language: str) -> bool:
    """Tell whether most letters are of another script than the language's; False where it is not known."""
    script = _SCRIPTS.get(language)
    letters = [char for char in text if char.isalpha()]
    if script is None:
        return False
    limit = _FOREIGN_DENSE if language in _DENSE else _FOREIGN
    return sum(not unicodedata.name(char, "").startswith(script) for char in letters) > limit * len(letters)
