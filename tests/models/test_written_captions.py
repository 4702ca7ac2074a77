"""BLIP-2, MarianMT and vision-language models: tiny random weights of the real classes through the production path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from shared.errors import ModelCorruptError, UnreadablePictureError, UsageError
from shared.pictures import encode_png
from shared.recipe import Blip2Caption, Recipe, VlmCaption
from workers.batcher import Batcher
from workers.captioning import blip2, translation
from workers.captioning.blip2 import Blip2Model, Described, prompt_ids
from workers.captioning.translation import Translator
from workers.captioning.vlm import VlmModel
from workers.random_models.language import save_blip2, save_marian, save_vlm
from workers.stage import Work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CPU = torch.device("cpu")
LIMITS = {"max_bytes": 50_000_000, "max_pixels": 64_000_000}


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
        "vlm": save_vlm(root / "vlm"),
    }


def blip2_recipe(folders: dict[str, Path], writer: str = "opt", **options: Any) -> Recipe:
    caption = {"model": "blip2", "weights": str(folders[writer]), "max_tokens": 8, **options}
    if "ru" in caption.get("languages", ("en", "ru")):
        caption["translators"] = {"ru": str(folders["marian"])}
    return Recipe.from_mapping({"caption": caption})


def work(recipe: Recipe, seed: int = 0, *, alpha: bool = False, fields: dict[str, Any] | None = None) -> Work:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 40, 4 if alpha else 3), np.uint8)
    data = encode_png(Image.fromarray(pixels))
    return Work("a.png", recipe, data, {"image": data, "cutout": data}, fields=fields or {})


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
    batcher = Batcher(model.infer, model.bucket, max_batch=8, deadline=60)
    answers = [batcher.submit(item) for item in (good, odd, good)]
    assert answers[0].result(60).captions == answers[2].result(60).captions
    assert answers[1].exception(60) is not None
    batcher.close()


def test_eight_bits_need_a_gpu(folders: dict[str, Path], tmp_path: Path) -> None:
    """And say so at the start."""
    recipe = blip2_recipe(folders, languages=["en"], quantize="int8")
    with pytest.raises(UsageError, match="needs a GPU"):
        loaded(recipe, tmp_path)


def damage(folder: Path, copy: Path, name: str, change: dict[str, Any] | None = None) -> Path:
    """Copy a model without one of its weights, or with its configuration changed."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    if name:
        weights = load_file(copy / "model.safetensors")
        found = next(key for key in weights if key.endswith(name))
        del weights[found]
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
    if change:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | change))
    return copy


def test_a_model_with_a_weight_missing_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Random weights in its place would give fluent nonsense and no error."""
    recipe = blip2_recipe(folders, languages=["en"])
    copy = damage(folders["opt"], tmp_path / "copy", "query_tokens")
    with pytest.raises(ModelCorruptError, match="lacks weights"):
        loaded(
            recipe.model_copy(update={"caption": recipe.caption.model_copy(update={"weights": str(copy)})}), tmp_path
        )
    whole = damage(folders["marian"], tmp_path / "untied", "", {"tie_word_embeddings": False})
    with pytest.raises(ModelCorruptError, match="lacks weights"):
        Translator(whole, str(whole), "ru", CPU, torch.float32)
    with pytest.raises(ModelCorruptError, match="is no opus-mt model"):
        Translator(tmp_path, "opus-mt-en-xx", "xx", CPU, torch.float32)


def test_a_preset_that_translates_nonsense_is_refused(folders: dict[str, Path]) -> None:
    """A fixed sentence is translated at the start; random weights cannot know what is red and white."""
    with pytest.raises(ModelCorruptError, match="translates 'A red shoe on a white background"):
        Translator(folders["marian"], "opus-mt-en-ru", "ru", CPU, torch.float32)


def test_translations_keep_their_order_whatever_their_length(folders: dict[str, Path]) -> None:
    """Batched as one by one; an empty text is not translated."""
    translator = Translator(folders["marian"], str(folders["marian"]), "ru", CPU, torch.float32)
    texts = ["a red shoe", "", "the photo of a small bag on a table with a handle", "a mug"]
    together, _ = translator.translate(texts)
    assert together == [translator.translate([text])[0][0] for text in texts]
    assert together[1] == ""


def test_a_translation_is_made_again_while_something_is_wrong_with_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, and only that one."""
    translator = Translator(folders["marian"], str(folders["marian"]), "ru", CPU, torch.float32)
    batches: list[list[str]] = []

    def once(texts: list[str], _: object) -> list[str]:
        batches.append(texts)
        return ["красный ботинок" if text == "a red shoe" else text for text in texts]

    monkeypatch.setattr(translator, "_once", once)
    done, faults = translator.translate(["a red shoe", "a blue mug"])
    assert done == ["красный ботинок", "a blue mug"]
    assert faults == [[], ["translation_missing"]]
    assert [len(batch) for batch in batches] == [2] + [1] * (len(translation.ATTEMPTS) - 1)


def vlm_recipe(folders: dict[str, Path], **options: Any) -> Recipe:
    return Recipe.from_mapping(
        {
            "caption": {
                "model": "vlm",
                "weights": str(folders["vlm"]),
                "max_tokens": 16,
                "languages": ["en", "ru"],
                **options,
            }
        }
    )


@pytest.fixture(scope="module")
def vlm(folders: dict[str, Path]) -> VlmModel:
    section = vlm_recipe(folders).caption
    assert isinstance(section, VlmCaption)
    model = VlmModel(section, folders["vlm"].parent, **LIMITS)
    model.load("cpu", 1)
    return model


def test_questions_of_different_length_are_answered_as_one_by_one(folders: dict[str, Path], vlm: VlmModel) -> None:
    """Padding on the left, pictures of different shapes."""
    recipe = vlm_recipe(folders)
    items = [vlm.prepare(work(recipe, seed, fields={"title": "mug " * seed})) for seed in range(3)]
    talks = [
        (item.picture, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.question}]}])
        for item in items
    ]
    assert len({item.question for item in items}) == 3
    assert vlm._answer(talks, 8) == [vlm._answer([talk], 8)[0] for talk in talks]


def test_an_answer_that_cannot_be_used_is_asked_for_once_more(
    folders: dict[str, Path], vlm: VlmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is shown its answer and what is wrong with it; what is still wrong then is a reason to look."""
    recipe = vlm_recipe(folders)
    entry = {"title": "Mug", "description": "A white mug.", "alt_text": "A mug"}
    russian = {"title": "Кружка", "description": "Белая кружка.", "alt_text": "Кружка"}
    good = json.dumps({"en": entry, "ru": russian})
    talks_seen: list[list[Any]] = []

    def answer(talks: Sequence[tuple[Any, list[dict[str, Any]]]], _: int) -> list[str]:
        talks_seen.append([talk for _, talk in talks])
        return [good, "no", "no"] if len(talks_seen) == 1 else [good, "never"]

    monkeypatch.setattr(vlm, "_answer", answer)
    items = [vlm.prepare(work(recipe, seed)) for seed in range(3)]
    told = vlm.infer(items)
    assert [one.attempts for one in told] == [1, 2, 2]
    assert [len(batch) for batch in talks_seen] == [3, 2]
    assert [message["role"] for message in talks_seen[1][0]] == ["user", "assistant", "user"]
    results = [vlm.finish(work(recipe), item, one) for item, one in zip(items, told, strict=True)]
    assert [result.reasons for result in results] == [(), (), ("caption_schema",)]
    record = json.loads(results[0].artifacts["caption"].data)
    assert record["captions"] == {"en": "A white mug.", "ru": "Белая кружка."}
    assert record["details"]["ru"]["title"] == "Кружка"
    assert json.loads(results[2].artifacts["caption"].data)["captions"] == {}


def test_a_real_answer_of_random_weights_is_refused_and_not_an_error(folders: dict[str, Path], vlm: VlmModel) -> None:
    """From the picture to the record through the real model."""
    recipe = vlm_recipe(folders)
    task = work(recipe)
    item = vlm.prepare(task)
    result = vlm.finish(task, item, vlm.infer([item])[0])
    assert result.reasons == ("caption_schema",)
    assert "JSON" in result.measures["problem"]


def test_a_folder_that_is_no_such_model_is_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    section = VlmCaption(model="vlm", weights=str(tmp_path))
    with pytest.raises(ModelCorruptError, match="is no vision-language model"):
        VlmModel(section, tmp_path, **LIMITS).load("cpu", 1)
    assert isinstance(folders, dict)
