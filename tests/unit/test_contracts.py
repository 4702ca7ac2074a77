"""Keys, fingerprints, messages and recipes: what is let in, and that names follow from content alone."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.broker import make_app
from shared.errors import KeyRefusedError, MessageError, RecipeError
from shared.fields import ItemFields
from shared.fingerprints import LENGTH, fingerprint
from shared.keys import check_source_key, output_key
from shared.messages import Item
from shared.plan import Plan
from shared.provenance import Provenance
from shared.recipe import Recipe
from shared.settings import Settings
from shared.wording import PATTERNS

if TYPE_CHECKING:
    from pathlib import Path

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "key", ["a.jpg", "shoes/1.jpg", "с пробелом и «кавычками».jpg", "a'b\"c.png", "..a/b..jpg", "日本/靴.webp"]
)
def test_ordinary_and_odd_names_are_accepted(key: str) -> None:
    """Spaces, quotes and any script are names like others."""
    assert check_source_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../a.jpg",
        "a/../b.jpg",
        "a//b.jpg",
        "a/./b",
        "a\nb.jpg",
        "a\x00b",
        "a\\b.jpg",
        "\ud800.jpg",
        "a" * 2000,
        "a/",
    ],
)
def test_keys_that_escape_or_cannot_be_written_down_are_refused(key: str) -> None:
    """Nothing outside the output folder can be named."""
    with pytest.raises(KeyRefusedError):
        check_source_key(key)


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_sources_never_share_an_output(a: str, b: str) -> None:
    """The whole key, extension included, is the folder."""
    if a != b:
        assert output_key(a, "mask", "0" * LENGTH, "png") != output_key(b, "mask", "0" * LENGTH, "png")


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=6))
def test_a_fingerprint_does_not_depend_on_the_order_of_fields(parts: dict[str, Any]) -> None:
    """The same content gives the same name."""
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items())))
    assert len(fingerprint(parts)) == LENGTH


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_changed_content_changes_every_name(etag: str, other: str) -> None:
    """A new photo under an old key never meets the old outputs."""
    if etag != other:
        one, two = Plan(Recipe()).outputs("a.jpg", etag), Plan(Recipe()).outputs("a.jpg", other)
        assert not set(one.fingerprints.values()) & set(two.fingerprints.values())


def test_a_new_background_keeps_the_mask_and_renames_what_follows() -> None:
    """Only the stages behind the change run again."""
    studio = Plan(Recipe()).outputs("a.jpg", "e")
    white = Plan(Recipe.from_mapping({"background": {"model": "color", "color": "#FFFFFF"}})).outputs("a.jpg", "e")
    assert studio.keys["segmentation"] == white.keys["segmentation"]
    assert studio.key("image") != white.key("image")
    assert studio.key("caption") != white.key("caption")


def safe(key: str) -> bool:
    try:
        return bool(check_source_key(key))
    except KeyRefusedError:
        return False


@given(
    st.builds(
        Item,
        job=st.just("20260101-000000-abc"),
        index=st.integers(0, 2**32 - 1),
        key=st.text(min_size=1, max_size=99).filter(safe),
        etag=st.text(max_size=64),
    )
)
def test_a_message_survives_the_wire(item: Item) -> None:
    """What the producer sends is what the worker reads."""
    assert Item.from_wire(json.loads(json.dumps(item.to_wire()))) == item


@given(JSON)
def test_anything_else_on_the_queue_is_refused(data: Any) -> None:
    """No hostile message gets further than its check."""
    with pytest.raises(MessageError):
        Item.from_wire(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 2), ("index", -1), ("index", True), ("job", "../x"), ("job", "A"), ("key", "k" * 3000), ("etag", 5)],
)
def test_a_message_with_one_wrong_field_is_refused(field: str, value: Any) -> None:
    """Each field is checked for itself."""
    message = Item("job", 0, "a.jpg", "e").to_wire() | {field: value}
    with pytest.raises(MessageError):
        Item.from_wire(message)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"backgrond": {}}, ["backgrond", "background"]),
        (
            {"background": {"model": "studio", "colour": "#fff"}},
            ["background.colour:", "mean color?", "shadow", "studio"],
        ),
        ({"background": {"model": "lava"}}, ["background.model", "studio", "transparent", '"lava"']),
        ({"background": {"model": "colour"}}, ["background.model", "did you mean color?"]),
        ({"background": {"image": "wall.jpg"}}, ["background.image:", "model studio", "shadow"]),
        ({"background": {"model": "color", "color": "red"}}, ["background.color must be a colour", "#ffffff", "red"]),
        ({"background": {"model": "color", "color": None}}, ["background.color", "quotes"]),
        ({"background": "white"}, ["background must be a mapping"]),
        ({"picture": {"format": "jpg"}}, ["picture.format", "webp", "did you mean jpeg?"]),
        ({"picture": {"quality": "high"}}, ["picture.quality must be a whole number", '"high"']),
        ({"caption": {"languages": ["en", "fr"]}}, ["caption.languages[2] must be en or ru"]),
        ({"caption": {"model": "blip2", "languages": []}}, ["caption.languages must be at least one entry"]),
        (
            {"caption": {"model": "blip2", "languages": ["Deutsch"]}},
            ["caption.languages[1]", "two or three small letters"],
        ),
        ({"caption": {"model": "blip2", "translators": {"RU": "x"}}}, ["caption.translators.RU must be a language"]),
        ({"background": {"model": "diffusion", "weights": "a b"}}, ["background.weights", "models list"]),
        ({"background": {"model": "transparent"}}, ["transparent", "png"]),
        ({"picture": {"quality": 101}}, ["picture.quality", "100", "101"]),
        ({"picture": {"size": [10, 9000]}}, ["picture.size[1] must be at least 64", "picture.size[2] must be at most"]),
        ({"picture": {"size": [10, 10], "quality": 0}}, ["picture.size[1]", "picture.quality must be at least 1"]),
        ({"picture": {"size": 800}}, ["picture.size must be a list"]),
        ({"segmentation": {"model": "saliency", "gates": {"min_are": 1}}}, ["min_are", "min_area"]),
        ([], ["mapping"]),
        ("x", ["mapping"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_field_and_what_is_allowed(recipe: Any, words: list[str]) -> None:
    """The message is enough to correct it."""
    with pytest.raises(RecipeError) as refused:
        Recipe.from_mapping(recipe)
    said = str(refused.value)
    assert all(word in said for word in words), said
    assert not any(word in said for word in ("\n", "Input", "tag", "union", "pattern", "color.color")), said


def _patterns(schema: Any) -> set[str]:
    """Find every pattern of a JSON schema, however deep."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    found = {schema["pattern"]} if isinstance(schema, dict) and isinstance(schema.get("pattern"), str) else set()
    return found.union(*map(_patterns, inner))


def test_every_pattern_has_words() -> None:
    """Nobody is shown a regular expression."""
    patterns = _patterns(Recipe.model_json_schema()) | _patterns(ItemFields.model_json_schema())
    assert patterns
    assert patterns - PATTERNS.keys() == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("background: {model: color, color: #FFFFFF}", ["line 1", '"#FFFFFF"', "quotes"]),
        ("background:\n  model: studio\n  color: #eeeeee\n", ["line 3", '"#eeeeee"', "quotes"]),
        ("background: [unclosed", ["line 1", "not valid YAML"]),
        ("picture: {size: 2026-11-23}", ["only text, numbers"]),
        (
            "picture: {quality: 90}\ncaption: {}\npicture: {quality: 80}\n",
            ["line 3: picture stands here again, after line 1"],
        ),
        ('{"background": {"model": "studio",\n"shadow": 0.1,\n"shadow": 0.2}}', ["line 3: shadow", "after line 2"]),
    ],
)
def test_a_recipe_file_that_yaml_would_misread_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    """With the line; a colour without quotes is a comment to YAML and would be dropped without a word."""
    path = tmp_path / "white.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        Recipe.load(path)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_what_a_merge_brings_may_be_said_otherwise(tmp_path: Path) -> None:
    """That is what YAML's `<<` is for: only what is written twice in one mapping is refused."""
    path = tmp_path / "merged.yaml"
    path.write_text("picture: {<<: {quality: 80, feather: 1}, quality: 70}\n")
    picture = Recipe.load(path).picture
    assert (picture.quality, picture.feather) == (70, 1)


def test_a_comment_may_hold_a_colour(tmp_path: Path) -> None:
    """And so may a text: only a colour that YAML would lose is refused."""
    path = tmp_path / "white.yaml"
    path.write_text('# color: #ffffff is white\nbackground: {model: diffusion, prompt: "color: #fff", color: white}\n')
    assert Recipe.load(path).background.model == "diffusion"


def test_a_recipe_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Without the system's error numbers."""
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff")
    for path, words in (
        (tmp_path, "directory"),
        (tmp_path / "no.yaml", "no recipe file"),
        (tmp_path / "photo.yaml", "not text"),
    ):
        with pytest.raises(RecipeError, match=words) as refused:
            Recipe.load(path)
        assert "Errno" not in str(refused.value)


@given(JSON)
def test_any_data_is_a_recipe_or_a_recipe_error(data: Any) -> None:
    """No input makes another exception."""
    try:
        recipe = Recipe.from_mapping(data)
    except RecipeError:
        return
    assert Recipe.from_mapping(json.loads(recipe.to_json())) == recipe


def test_provenance_survives_metadata_and_its_absence() -> None:
    """Outputs copied by tools that drop metadata are of unknown origin, not an error."""
    made = Provenance(
        job="j", stage="segmentation", reasons=("mask_border",), measures={"area": 0.5}, seconds={"infer": 0.1}
    )
    assert Provenance.from_metadata(made.to_metadata()) == made
    assert Provenance.from_metadata({}) == Provenance()
    assert Provenance.from_metadata({"vitrina": "nonsense"}) == Provenance()
    large = Provenance(job="j", measures={"text": "x" * 5000})
    assert len(large.to_metadata()["vitrina"]) < 2000


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", ssl.CERT_REQUIRED), ("?ssl_cert_reqs=none", ssl.CERT_NONE), ("?ssl_ca_certs=/ca.pem", ssl.CERT_REQUIRED)],
)
def test_an_encrypted_broker_is_spoken_to_encrypted(query: str, expected: ssl.VerifyMode) -> None:
    """And its certificate is checked unless the address says otherwise; the queues follow the same rule as the progress."""
    app = make_app(Settings(broker=SecretStr(f"rediss://:secret@queue:6380/0{query}")))
    connection = app.connection_for_write()
    assert connection.ssl["ssl_cert_reqs"] == expected
    assert connection.ssl.get("ssl_ca_certs") == ("/ca.pem" if "ca" in query else None)
    assert (connection.hostname, connection.virtual_host) == ("queue", "0")
    app.close()


def test_a_number_that_json_cannot_write_is_refused() -> None:
    """It would come back as nothing in the job's record, and no worker could read that."""
    with pytest.raises(RecipeError, match="shadow"):
        Recipe.from_mapping({"background": {"model": "studio", "shadow": float("inf")}})
    with pytest.raises(RecipeError, match="min_brightness"):
        Recipe.from_mapping({"picture": {"gates": {"min_brightness": float("inf")}}})


def test_a_section_without_a_model_means_the_starter_one() -> None:
    """Every field has a default, `model` too."""
    recipe = Recipe.from_mapping({"caption": {"languages": ["en"]}, "background": {"shadow": 0.1}, "segmentation": {}})
    assert (recipe.segmentation.model, recipe.background.model, recipe.caption.model) == (
        "saliency",
        "studio",
        "labels",
    )
    assert recipe.caption.languages == ("en",)
