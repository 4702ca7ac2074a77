"""Guards on written texts: loops, echoes, emptiness, invented brands, translations that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.captioning.answers import AnswerError, question, read_answer, repair
from workers.captioning.guards import caption_faults, loops, translation_faults

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
    ],
)
def test_captions_are_judged(text: str, faults: list[str]) -> None:
    """By what a person would object to at once."""
    assert caption_faults(text, "a question: what is this product", ["Nike"]) == faults


def test_an_answer_after_a_one_word_prompt_is_no_echo() -> None:
    """Most captions begin with an article."""
    assert caption_faults("a red shoe", "a") == []


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
        ("{" * 5000, "not one JSON object"),
    ],
)
def test_answers_that_cannot_be_used_say_what_to_change(text: str, said: str) -> None:
    """The model is shown the reason once."""
    with pytest.raises(AnswerError) as caught:
        read_answer(text, ["en", "ru"])
    assert said in str(caught.value)
    assert said in repair(caught.value)


def test_the_question_names_the_languages_and_what_the_merchant_knows() -> None:
    text = question(["en", "ru"], "Write soberly.", {"title": "Mug 12", "seed": 4})
    assert '"en" (English), "ru" (Russian)' in text
    assert "title: Mug 12" in text
    assert "Write soberly." in text
    assert "seed" not in text
