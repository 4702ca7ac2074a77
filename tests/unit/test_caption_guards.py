"""Guards on written texts: loops, echoes, emptiness, invented brands, translations that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.captioning.answers import AnswerError, Entry, objections, question, read_answer, repair
from workers.captioning.guards import caption_faults, foreign, loops, translation_faults, words

GOOD = "a pair of white plimsolls with red soles"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (GOOD, []),
        ("", ["caption_empty"]),
        ("... 123 !", ["caption_empty"]),
        ("+X\ufffd \ufffd y", ["caption_empty"]),
        ("a shoe and a shoe and a shoe and a shoe", ["caption_loop"]),
        ("red red red red red", ["caption_loop"]),
        ("very very large red bag", []),
        ("a question: what is this product called", ["caption_echo"]),
        (" ".join(f"word{i}" for i in range(81)), ["caption_long"]),
        ("a NIKE shoe", ["caption_stop_word"]),
        ("a nikea shoe", []),
        ("LED 12 V, 40 x 60, 5000 K", []),
        ("सफ़ेद पृष्ठभूमि पर लाल जूता", []),
        ("รองเท้าสีแดงบนพื้นหลังสีขาว", []),
        ("红鞋红鞋红鞋红鞋红鞋红鞋", ["caption_loop"]),
        ("a shoooooooooe", ["caption_loop"]),
        ("10000000 pixels", []),
    ],
)
def test_captions_are_judged(text: str, faults: list[str]) -> None:
    """By what a person would object to at once."""
    assert caption_faults(text, "a question: what is this product", ["Nike"]) == faults


def test_an_answer_after_a_one_word_prompt_is_no_echo() -> None:
    """Most captions begin with an article."""
    assert caption_faults("a red shoe", "a") == []


def test_a_caption_without_an_end_is_cut() -> None:
    """However well it begins."""
    assert caption_faults("a red shoe on a", ended=False) == ["caption_cut"]


def test_marks_belong_to_their_words() -> None:
    """Vowels of Hindi are marks, and no ends of words."""
    assert words("लाल जूता, 2 Paar") == ["लाल", "जूता", "2", "paar"]


@pytest.mark.parametrize(
    ("text", "language", "told"),
    [
        ("красные кеды", "en", True),
        ("red plimsolls", "en", False),
        ("red plimsolls", "ru", True),
        ("红色帆布鞋 Converse", "zh", False),
        ("red plimsolls", "zh", True),
        ("赤いスニーカー", "ja", False),
        ("red plimsolls", "am", False),
        ("", "ru", False),
    ],
)
def test_another_script_tells_that_a_text_is_not_in_its_language(text: str, language: str, *, told: bool) -> None:
    """Where the script is known; names may stay as they are."""
    assert foreign(text, language) is told


@pytest.mark.parametrize(
    ("text", "source", "language", "faults"),
    [
        ("белые кеды с красной подошвой", GOOD, "ru", []),
        ("кеды Converse All Star", GOOD, "ru", ["translation_missing"]),
        ("кеды бренда Converse белого цвета", GOOD, "ru", []),
        (GOOD, GOOD, "ru", ["translation_missing"]),
        ("", GOOD, "ru", ["translation_empty"]),
        ("кеды и кеды и кеды и кеды и кеды", GOOD, "ru", ["translation_loop"]),
        ("weiße Turnschuhe mit roten Sohlen", GOOD, "de", []),
        (GOOD, GOOD, "de", ["translation_missing"]),
        ("laptop", "laptop", "de", []),
        ("λευκά παπούτσια", GOOD, "el", []),
    ],
)
def test_translations_are_judged(text: str, source: str, language: str, faults: list[str]) -> None:
    """A brand may stay Latin, a sentence may not."""
    assert translation_faults(text, source, language) == faults


@given(st.text(max_size=300), st.text(max_size=60), st.lists(st.text(min_size=1, max_size=20), max_size=3))
def test_no_text_breaks_the_guards(text: str, prompt: str, stop_words: list[str]) -> None:
    """Whatever a model writes is judged, never an error."""
    assert set(caption_faults(text, prompt, stop_words)) <= {
        "caption_empty",
        "caption_loop",
        "caption_echo",
        "caption_long",
        "caption_stop_word",
    }
    assert isinstance(loops(text), bool)
    translation_faults(text, prompt, "ru")


ENTRY = '{"title": "White mug", "description": "A white mug.", "alt_text": "A mug", "attributes": {"color": "white"}}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"en": {ENTRY}}}',
        f'```json\n{{"en": {ENTRY}}}\n```',
        f'Here it is:\n{{"en": {ENTRY}, "de": 3}} Enjoy!',
    ],
)
def test_answers_are_found_in_what_models_wrap_them_in(text: str) -> None:
    """Bare, in a fence, or in a sentence."""
    entry = read_answer(text, ["en"])["en"]
    assert (entry.title, entry.attributes.color, entry.attributes.material) == ("White mug", "white", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I cannot help with that.", "not one JSON object"),
        ("[1, 2]", "not one JSON object"),
        (f'{{"en": {ENTRY}}}', "ru are missing"),
        (f'{{"en": {ENTRY}, "ru": {{"title": "Кружка"}}}}', "description: field required"),
        (f'{{"en": {ENTRY}, "ru": {{"title": " ", "description": "x", "alt_text": "y"}}}}', "title: "),
        ("{" * 5000, "be briefer"),
        (f'{{"en": {ENTRY}, "ru": {{"title": "Круж', "be briefer"),
        ('{"en": {"title": "\\ud83d", "description": "x", "alt_text": "y"}, "ru": {}}', "title: "),
    ],
)
def test_answers_that_cannot_be_used_say_what_to_change(text: str, said: str) -> None:
    """The model is shown the reason once."""
    with pytest.raises(AnswerError) as caught:
        read_answer(text, ["en", "ru"])
    assert said in str(caught.value)
    assert said in repair(str(caught.value))


def test_objections_name_the_words_that_must_go() -> None:
    """Those that were written, of a list that may be long."""
    entry = Entry(title="Nike shoe", description="A shoe.", alt_text="A shoe")
    said = objections(["caption_stop_word", "translation_missing"], {"en": entry}, ["Adidas", "nike"])
    assert said == "these words must not appear: nike; a text is not in the language of its key"


def test_the_question_names_the_languages_and_what_the_merchant_knows() -> None:
    text = question(["en", "ru"], "Write soberly.", {"title": "Mug 12", "seed": 4})
    assert '"en" (English), "ru" (Russian)' in text
    assert "title: Mug 12" in text
    assert "Write soberly." in text
    assert "seed" not in text
