"""Opus-mt: tiny random weights of the real class through the production path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from made_captions import cut_short, damage

from shared.errors import ModelCorruptError, UsageError
from workers.captioning import translation
from workers.captioning.translation import Translator, target_token
from workers.random_models.language import save_marian

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the hub's layout."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    return save_marian(tmp_path_factory.mktemp("translations") / "marian")


def test_a_model_with_a_weight_missing_is_refused(marian: Path, tmp_path: Path) -> None:
    """Random weights in its place would give fluent nonsense and no error."""
    untied = damage(marian, tmp_path / "untied", "", {"tie_word_embeddings": False})
    with pytest.raises(ModelCorruptError, match="lacks weights"):
        Translator(untied, str(untied), "ru", CPU, torch.float32)
    with pytest.raises(ModelCorruptError, match="is no opus-mt model"):
        Translator(tmp_path, "opus-mt-en-xx", "xx", CPU, torch.float32)


def test_weights_that_were_cut_short_are_refused(marian: Path, tmp_path: Path) -> None:
    """In one line that says what to do."""
    copy = cut_short(marian, tmp_path / "copy")
    with pytest.raises(ModelCorruptError, match=r"is no opus-mt model: fetch opus-mt-en-xx again"):
        Translator(copy, "opus-mt-en-xx", "xx", CPU, torch.float32)


def test_a_preset_that_translates_nonsense_is_refused(marian: Path) -> None:
    """A fixed sentence is translated at the start; random weights cannot know what is red and white."""
    with pytest.raises(ModelCorruptError, match="translates 'A red shoe on a white background"):
        Translator(marian, "opus-mt-en-ru", "ru", CPU, torch.float32)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (translation.SENTENCE, False),
        ("", False),
        ("а" * 40, False),
        ("Червоний черевик на білому тлі.", True),
    ],
    ids=["untranslated", "empty", "looping", "right"],
)
def test_a_pair_whose_words_nobody_listed_is_tried_too(
    marian: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, right: bool
) -> None:
    """What no language would make of the fixed sentence is seen without a list."""
    monkeypatch.setattr(Translator, "_once", lambda *_: [text])
    if right:
        assert Translator(marian, "opus-mt-en-uk", "uk", CPU, torch.float32)
    else:
        with pytest.raises(ModelCorruptError, match="its weights are damaged, fetch it again"):
            Translator(marian, "opus-mt-en-uk", "uk", CPU, torch.float32)


@pytest.fixture
def polyglot(marian: Path, tmp_path: Path) -> Path:
    """A model that writes Russian and Ukrainian: two of its pieces are the languages' tokens."""
    copy = damage(marian, tmp_path / "polyglot")
    pieces = {number: piece for piece, number in json.loads((copy / "vocab.json").read_text()).items()}
    pieces |= {len(pieces) - 2: ">>rus<<", len(pieces) - 3: ">>ukr<<", len(pieces) - 4: ">>no_language_at_all<<"}
    (copy / "vocab.json").write_text(json.dumps({piece: number for number, piece in pieces.items()}))
    return copy


@pytest.mark.parametrize(("language", "token"), [("ru", ">>rus<<"), ("rus", ">>rus<<"), ("uk", ">>ukr<<")])
def test_a_model_of_several_languages_is_told_which(
    polyglot: Path, monkeypatch: pytest.MonkeyPatch, language: str, token: str
) -> None:
    """By its own token before every text; models of one language get none."""
    translator = Translator(polyglot, str(polyglot), language, CPU, torch.float32)
    asked: list[Any] = []
    generate = translator._model.generate

    def listen(**given: Any) -> Any:
        asked.append(given["input_ids"])
        return generate(**given)

    monkeypatch.setattr(translator._model, "generate", listen)
    translator.translate(["a red shoe", "a mug"])
    number = json.loads((polyglot / "vocab.json").read_text())[token]
    assert asked[0][:, 0].tolist() == [number, number]
    assert asked[0][0].tolist().count(number) == 1


def test_a_language_that_a_model_does_not_write_is_refused(polyglot: Path) -> None:
    """It would write another in its place."""
    with pytest.raises(UsageError, match=r"writes rus, ukr, but not de: name another in caption\.translators\.de"):
        Translator(polyglot, str(polyglot), "de", CPU, torch.float32)


@pytest.mark.parametrize(
    ("codes", "language", "token"),
    [
        ([], "ru", ""),
        ([">>srp_Latn<<", ">>srp_Cyrl<<", ">>hrv<<"], "sr", ">>srp_Cyrl<<"),
        ([">>yue_Hant<<", ">>cmn_Hant<<", ">>cmn_Hans<<"], "zh", ">>cmn_Hans<<"),
        ([">>dan<<", ">>nob<<", ">>nno<<"], "no", ">>nob<<"),
        ([">>fr_CA<<", ">>fr<<"], "fr", ">>fr<<"),
    ],
)
def test_the_nearest_of_a_languages_variants_is_taken(codes: list[str], language: str, token: str) -> None:
    """In the script that the guards look for."""
    assert target_token(codes, "opus-mt", language) == token


@pytest.mark.parametrize(("beams", "first"), [(1, {"num_beams": 1}), (3, {"num_beams": 3}), ("published", {})])
def test_the_recipe_says_how_many_beams(
    marian: Path, monkeypatch: pytest.MonkeyPatch, beams: Any, first: dict[str, int]
) -> None:
    """Or leaves it to the configuration that came with the weights; what is made again has settings of its own."""
    translator = Translator(marian, str(marian), "ru", CPU, torch.float32)
    asked: list[Any] = []
    monkeypatch.setattr(translator, "_once", lambda texts, options: asked.append(options) or texts)
    translator.translate(["a red shoe"], beams)
    assert asked == [first, *translation.ATTEMPTS[1:]]


def test_translations_keep_their_order_whatever_their_length(marian: Path) -> None:
    """Batched as one by one; an empty text is not translated."""
    translator = Translator(marian, str(marian), "ru", CPU, torch.float32)
    texts = ["a red shoe", "", "the photo of a small bag on a table with a handle", "a mug"]
    together, _ = translator.translate(texts)
    assert together == [translator.translate([text])[0][0] for text in texts]
    assert together[1] == ""


def test_a_translation_is_made_again_while_something_is_wrong_with_it(
    marian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, and only that one."""
    translator = Translator(marian, str(marian), "ru", CPU, torch.float32)
    batches: list[list[str]] = []

    def once(texts: list[str], _: object) -> list[str]:
        batches.append(texts)
        return ["красный ботинок" if text == "a red shoe" else text for text in texts]

    monkeypatch.setattr(translator, "_once", once)
    done, faults = translator.translate(["a red shoe", "a blue mug"])
    assert done == ["красный ботинок", "a blue mug"]
    assert faults == [[], ["translation_missing"]]
    assert [len(batch) for batch in batches] == [2] + [1] * (len(translation.ATTEMPTS) - 1)
