"""BLIP-2: tiny random weights of the real classes through the production path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from made_captions import LIMITS, cut_short, damage, work

from shared.errors import ModelCorruptError, UnreadablePictureError, UsageError
from shared.recipe import Blip2Caption, Recipe
from workers.batcher import Batcher
from workers.captioning import blip2
from workers.captioning.blip2 import Blip2Model, Described, prompt_ids
from workers.random_models.language import save_blip2, save_marian
from workers.stage import Work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models in the hub's layout."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("written")
    return {
        "opt": save_blip2(root / "opt"),
        "t5": save_blip2(root / "t5", writer="t5"),
        "marian": save_marian(root / "marian"),
    }


def blip2_recipe(folders: dict[str, Path], writer: str = "opt", **options: Any) -> Recipe:
    caption = {"model": "blip2", "weights": str(folders[writer]), "max_tokens": 8, **options}
    if "ru" in caption.get("languages", ("en", "ru")):
        caption["translators"] = {"ru": str(folders["marian"])}
    return Recipe.from_mapping({"caption": caption})


def loaded(recipe: Recipe, folder: Path) -> Blip2Model:
    assert isinstance(recipe.caption, Blip2Caption)
    model = Blip2Model(recipe.caption, folder, **LIMITS)
    model.load("cpu", 1)
    return model


@pytest.mark.parametrize("writer", ["opt", "t5"])
def test_a_batch_describes_as_one_by_one_would(folders: dict[str, Path], tmp_path: Path, writer: str) -> None:
    """Greedy words are equal, in the order of the pictures."""
    recipe = blip2_recipe(folders, writer)
    model = loaded(recipe, tmp_path)
    items = [model.prepare(work(recipe, seed)) for seed in range(4)]
    together = [answer.captions for answer in model.infer(items)]
    assert together == [model.infer([item])[0].captions for item in items]
    assert together == [answer.captions for answer in model.infer(items[::-1])][::-1]
    assert all(set(captions) == {"en", "ru"} for captions in together)


def test_the_record_holds_the_languages_in_the_order_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    """What the guards still object to is a reason to look."""
    recipe = blip2_recipe(folders, languages=["ru", "en"])
    model = loaded(recipe, tmp_path)
    task = work(recipe)
    said = Described({"en": "a shoe", "ru": "a shoe"}, 3, ["translation_missing", "translation_missing"])
    result = model.finish(task, model.prepare(task), said)
    record = json.loads(result.artifacts["caption"].data)
    assert list(record["captions"].items()) == [("ru", "a shoe"), ("en", "a shoe")]
    assert result.reasons == ("translation_missing",)
    assert result.measures == {"attempts": 3}


def test_what_the_guards_object_to_is_written_again_and_nothing_else(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice, with changed settings, and only the items concerned."""
    recipe = blip2_recipe(folders, languages=["en"])
    model = loaded(recipe, tmp_path)
    items = [model.prepare(work(recipe, seed)) for seed in range(3)]
    asked: list[tuple[int, dict[str, Any]]] = []

    said = [["a red shoe", "red red red red red", "a blue"], ["a red bag", "a blue mug with"], ["so so so so so"]]

    def describe(pixels: Sequence[Any], _: object, changes: dict[str, Any]) -> list[tuple[str, bool]]:
        asked.append((len(pixels), dict(changes)))
        return [(text, not text.startswith("a blue")) for text in said[len(asked) - 1]]

    monkeypatch.setattr(model, "_describe", describe)
    answers = model.infer(items)
    assert [count for count, _ in asked] == [3, 2, 1]
    assert asked[0][1] == {}
    assert asked[1][1]["no_repeat_ngram_size"] > asked[2][1]["no_repeat_ngram_size"]
    assert [answer.attempts for answer in answers] == [1, 2, 3]
    assert [answer.faults for answer in answers] == [[], [], ["caption_loop"]]


def test_stop_words_are_forbidden_to_the_second_attempt(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brand names that the model invents."""
    recipe = blip2_recipe(folders, languages=["en"], stop_words=["Torres"])
    model = loaded(recipe, tmp_path)
    options: list[dict[str, Any]] = []
    generate = model._network.generate

    def listen(**given: Any) -> Any:
        options.append(given)
        return generate(**given)

    monkeypatch.setattr(model._network, "generate", listen)
    monkeypatch.setattr(blip2, "caption_faults", lambda *_, **__: ["caption_stop_word"])
    model.infer([model.prepare(work(recipe))])
    spelled = model._tokenizer(["Torres", " torres", "TORRES"], add_special_tokens=False)["input_ids"]
    assert len(options) == len(blip2.ATTEMPTS)
    assert "bad_words_ids" not in options[0]
    assert all(tokens in given["bad_words_ids"] for given in options[1:] for tokens in spelled)


def test_a_prompt_stands_after_the_picture(folders: dict[str, Path], tmp_path: Path) -> None:
    """Without one a text begins as the published model's does."""
    recipe = blip2_recipe(folders, languages=["en"], prompt="a photo of")
    model = loaded(recipe, tmp_path)
    config, tokenizer = model._network.config, model._tokenizer
    picture = [config.image_token_index] * config.num_query_tokens
    assert prompt_ids(config, tokenizer, "") == [*picture, config.text_config.bos_token_id]
    assert prompt_ids(config, tokenizer, "a photo of")[: len(picture)] == picture
    assert tokenizer.decode(prompt_ids(config, tokenizer, "a photo of"), skip_special_tokens=True) == "a photo of"
    assert model.infer([model.prepare(work(recipe))])[0].captions["en"] != "a photo of"
    assert prompt_ids(config, tokenizer, "<image> a")[: len(picture) + 2] == prompt_ids(config, tokenizer, " a")[:-1]
    config.text_config.bos_token_id = None
    assert prompt_ids(config, tokenizer, "") == [*picture, *tokenizer("")["input_ids"]]


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_a_caption_that_does_not_end_within_its_tokens_is_cut(
    folders: dict[str, Path], tmp_path: Path, prompt: str
) -> None:
    """One that does is whole; the prompt, which may hold the mark of the end, does not count."""
    recipe = blip2_recipe(folders, languages=["en"], prompt=prompt)
    model = loaded(recipe, tmp_path)
    item = model.prepare(work(recipe))
    [(text, ended)] = model._describe([item.pixels], item.settings, {})
    assert not ended
    first = model._tokenizer(text[0], add_special_tokens=False)["input_ids"][0]
    model._network.language_model.generation_config.eos_token_id = [first]
    assert model._describe([item.pixels], item.settings, {})[0][1]


def test_a_tokenizer_is_read_as_its_file_says(folders: dict[str, Path], tmp_path: Path) -> None:
    """The published models name classes that would build other tokenizers than were trained with."""
    copy = damage(folders["t5"], tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "T5Tokenizer"}))
    _, tokenizer = blip2.read_processors(copy, str(copy))
    _, published = blip2.read_processors(folders["t5"], "t5")
    assert tokenizer("a shoe")["input_ids"] == published("a shoe")["input_ids"]


@pytest.mark.parametrize("writer", ["opt", "t5"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_describes(folders: dict[str, Path], tmp_path: Path, writer: str, precision: str) -> None:
    """The parts that stay in full precision take what the others give."""
    recipe = blip2_recipe(folders, writer, languages=["en"], precision=precision)
    model = loaded(recipe, tmp_path)
    half = getattr(torch, precision)
    assert (
        model._network.vision_model.dtype == model._network.language_model.get_input_embeddings().weight.dtype == half
    )
    assert model.infer([model.prepare(work(recipe))])[0].captions["en"]


@pytest.mark.parametrize("source", ["image", "cutout", "source"])
def test_the_recipe_says_which_picture_is_described(folders: dict[str, Path], tmp_path: Path, source: str) -> None:
    """Nothing else is fetched; what is transparent stands on white."""
    recipe = blip2_recipe(folders, languages=["en"], source=source)
    model = loaded(recipe, tmp_path)
    assert model.reads(recipe) == (source,)
    assert model.prepare(work(recipe, alpha=True)).pixels.shape == (3, 32, 32)


def test_a_bad_picture_fails_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    """It never reaches the batch; what breaks inside one is found by halves."""
    recipe = blip2_recipe(folders, languages=["en"])
    model = loaded(recipe, tmp_path)
    broken = Work("b.png", recipe, b"", {"image": b"\x89PNG\r\n\x1a\nxx"})
    with pytest.raises(UnreadablePictureError):
        model.prepare(broken)
    good, bad = model.prepare(work(recipe)), model.prepare(work(recipe, 1))
    odd = blip2.Prepared(bad.pixels[:2], bad.settings)
    batcher = Batcher(model.infer, model.bucket, max_batch=8, deadline=600)
    answers = [batcher.submit(item) for item in (good, odd, good)]
    assert answers[0].result(60).captions == answers[2].result(60).captions
    assert answers[1].exception(60) is not None
    batcher.close()


def test_eight_bits_need_a_gpu(folders: dict[str, Path], tmp_path: Path) -> None:
    """And say so at the start."""
    recipe = blip2_recipe(folders, languages=["en"], quantize="int8")
    with pytest.raises(UsageError, match="needs a GPU"):
        loaded(recipe, tmp_path)


def test_a_model_with_a_weight_missing_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Random weights in its place would give fluent nonsense and no error."""
    recipe = blip2_recipe(folders, languages=["en"])
    copy = damage(folders["opt"], tmp_path / "copy", "query_tokens")
    with pytest.raises(ModelCorruptError, match="lacks weights"):
        loaded(
            recipe.model_copy(update={"caption": recipe.caption.model_copy(update={"weights": str(copy)})}), tmp_path
        )


def test_weights_that_were_cut_short_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """In one line that says what to do."""
    recipe = blip2_recipe({"opt": cut_short(folders["opt"], tmp_path / "copy")}, languages=["en"])
    with pytest.raises(ModelCorruptError, match=r"is no BLIP-2 model: fetch .* again"):
        loaded(recipe, tmp_path)
