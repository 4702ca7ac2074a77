"""Manifests, recipes and feeds of any size or shape are read within bounds, or refused in a line."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from producer.export import FEEDS, FeedOptions, join
from producer.export.rows import Columns
from producer.manifest import Manifest
from producer.tables import MAX_LINE, Table
from shared.envelope import MAX_BYTES as MAX_MESSAGE
from shared.errors import KeyRefusedError, RecipeError, UsageError
from shared.keys import MAX_KEY_BYTES
from shared.pictures.reading import MIN_SIDE
from shared.recipe import Recipe
from shared.recipe.recipe import MAX_BYTES, MAX_VALUES
from shared.settings import Settings
from shared.storage import open_storage
from shared.storage.s3 import S3Storage

LONG = "x" * (MAX_LINE + 1)
NESTED = "[" * 50_000


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", f"key\n{LONG}\n", "line 2: more than 1,000,000 characters"),
        ("a.csv", LONG, "line 1: more than"),
        ("a.csv", 'key\n"' + "a\n" * 200_000, "not valid CSV"),
        ("a.jsonl", LONG, "line 1: more than"),
        ("a.jsonl", '{"key": ' + NESTED, "line 1: not valid JSON"),
        ("a.csv", f'key,points\na.jpg,"{NESTED}"\n', "points and box are written as JSON"),
        ("a.csv", f"key,seed\na.jpg,{'9' * 5000}\n", "line 2: seed"),
        ("a.csv", "key\n../../etc/passwd\n", "line 2: the key is absolute, or has"),
        ("a.csv", "key,mask\na.jpg,/etc/passwd\n", "line 2: mask: the key is absolute"),
        ("a.jsonl", '{"key": "a\\u0000b"}\n', "control character"),
        ("a.csv", "key\na\x1b[2J\n", "control character"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_manifest_is_bounded(tmp_path: Path, name: str, text: str, words: str) -> None:
    """Its lines, its cells and their nesting; the message is no longer than a line."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Manifest(path).check()
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_lines_on_standard_input_are_bounded() -> None:
    """As a manifest's."""
    with pytest.raises(UsageError, match="standard input, line 2: more than"):
        list(Table(io.StringIO(f"a.jpg\n{LONG}"), ("key",)))


ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 8)}]\n"
    for before, here in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "more than 10,000 values"),
        ("a: &a [*a]\n", "more than 10,000 values"),
        ("#" * (MAX_BYTES + 1), "more than 100,000 bytes"),
        ("caption: " + "[" * 20_000, "not valid YAML"),
        ("caption: {model: vlm, languages: [" + "en, " * 50 + "ru]}", "at most 20 entries"),
        ("a: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("segmentation: {model: none, mask: supplied, mask_key: " + "x" * 2000 + "}", "at most 960 characters"),
    ],
    ids=["aliases", "a circle", "bytes", "nesting", "entries", "python", "text"],
)
def test_a_recipe_is_bounded(tmp_path: Path, text: str, words: str) -> None:
    """Before what it stands for is built."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert words in str(caught.value)


ENTITIES = "<!DOCTYPE rss [" + " " * 100_000 + '<!ENTITY a "aaaaaaaaaa">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_feed_declares_no_entities(tmp_path: Path, encoding: str) -> None:
    """However far down its head."""
    path = tmp_path / "feed.xml"
    path.write_bytes(f"{ENTITIES}<rss><item><id>&a;</id></item></rss>".encode(encoding))
    with pytest.raises(UsageError, match="declares entities"):
        join("google-xml", path, iter(()), Columns(Recipe(), "https://x"), FeedOptions(), io.BytesIO())
    assert set(FEEDS) == {"google-xml", "yml"}


@pytest.mark.parametrize("verb", ["get", "head", "put", "delete"])
@pytest.mark.parametrize("key", ["../x", "a/../../x", "./x"])
def test_a_prefix_cannot_be_left(verb: str, key: str) -> None:
    """A server that keeps objects in folders may take the dots at their word; nothing is sent."""
    # With keys of its own: boto3 would look for some, on the network as well.
    keys = {"access_key_id": SecretStr("key"), "secret_access_key": SecretStr("secret")}
    storage: Any = S3Storage.from_settings("s3://shop/photos", Settings(endpoint_url="http://127.0.0.1:9", **keys))
    with pytest.raises(KeyRefusedError):
        getattr(storage, verb)(key, *([b""] if verb == "put" else []))


def test_the_security_page_states_the_limits_that_hold() -> None:
    """With the names of settings that are there."""
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    known = {f"VITRINA_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"VITRINA_[A-Z_]*[A-Z]", page)) <= known
    for limit in (MAX_MESSAGE, MAX_LINE, MAX_BYTES, MAX_VALUES, csv.field_size_limit()):
        assert f"{limit:,}" in page
    assert f"{MAX_KEY_BYTES} bytes" in page
    assert f"sides under {MIN_SIDE} " in page
    assert len(page.splitlines()) < 120


def test_without_a_home_models_lie_in_the_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's user may be."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    assert Settings(_env_file=None).models_dir == Path(tempfile.gettempdir()) / "vitrina"  # type: ignore[call-arg] # pydantic-settings' own


def test_a_hidden_file_of_another_kind_says_nothing(tmp_path: Path) -> None:
    """Whoever fills a folder of photos may put anything beside them."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    storage = open_storage(str(tmp_path), Settings())
    for content in (b"[]", b'{"content_type": 1}', b"\xff", NESTED.encode(), b'{"metadata": 7, "content_type": ""}'):
        (tmp_path / ".a.jpg.meta").write_bytes(content)
        stat = storage.head("a.jpg")
        assert stat is not None
        assert stat.metadata == {}
