"""Manifests: every row is checked before anything is submitted, and what is wrong is named by its line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from producer.manifest import Manifest
from producer.selection import Selection
from shared.errors import UsageError
from shared.plan import Plan
from shared.recipe import Recipe
from shared.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from shared.storage import Stat


def csv_file(folder: Path, text: str | bytes, name: str = "items.csv") -> Manifest:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Manifest(path)


def test_rows_become_photos_in_order_with_their_fields(tmp_path: Path) -> None:
    """Cells of points and box are JSON; empty cells say nothing; columns we do not know are left alone and named."""
    source = MemoryStorage("memory://shop")
    source.put("a.jpg", b"a")
    source.put("b.jpg", b"b")
    manifest = csv_file(
        tmp_path,
        "\ufeffkey,id,title,box,price\r\n"
        'a.jpg,17,"Shoe, left","[1, 2, 30, 40]",9.99\r\n'
        "gone.jpg,,,,\r\n"
        "b.jpg,18,,,\r\n",
    )
    assert manifest.check() == 3
    assert manifest.ignored == ("price",)
    photos = list(manifest.photos(source))
    assert [photo.key for photo in photos] == ["a.jpg", "gone.jpg", "b.jpg"]
    assert photos[0].fields == {"id": "17", "title": "Shoe, left", "box": [1.0, 2.0, 30.0, 40.0]}
    assert photos[0].etag == next(source.list()).etag
    assert photos[1].etag == ""
    assert photos[2].fields == {"id": "18"}


def test_a_resumed_manifest_looks_up_only_what_is_left(tmp_path: Path) -> None:
    """After fifty million rows that would be fifty million requests."""
    looked: list[str] = []

    class Shop(MemoryStorage):
        def head(self, key: str) -> Stat | None:
            looked.append(key)
            return super().head(key)

    (tmp_path / "m.csv").write_text("key\n" + "".join(f"{number:04}.jpg\n" for number in range(1000)))
    photos = Manifest(tmp_path / "m.csv").photos(Shop(), lambda key: not key.endswith("9.jpg"), listed=890)
    assert [photo.key for photo in photos] == [f"{number:04}.jpg" for number in range(988, 999) if number % 10 != 9]
    assert len(looked) == 10
    selection = Selection(manifest=str(tmp_path / "m.csv"), limit=995)
    assert len(list(selection.photos(Shop(), Shop(), Recipe(), listed=990))) == 5


def test_jsonl_says_the_same(tmp_path: Path) -> None:
    row = {"key": "a.jpg", "points": [[5, 6, 1]], "seed": 7, "category": "shoes"}
    manifest = csv_file(tmp_path, json.dumps(row) + "\n\n", "items.jsonl")
    source = MemoryStorage("memory://shop")
    source.put("a.jpg", b"a")
    assert manifest.check() == 1
    (photo,) = manifest.photos(source)
    assert photo.fields == {"points": [[5.0, 6.0, 1]], "seed": 7, "category": "shoes"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the first line must name the columns"),
        ("id,title\n1,x\n", "one of them `key`"),
        ("key;title\na.jpg;Shoe\n", "separated by a semicolon: save it with commas"),
        ("\ufeffkey\ttitle\na.jpg\tShoe\n", "separated by a tab: save it with commas"),
        ("key,title,title\na,b,c\n", "columns named twice: title"),
        ("key\n", "has no rows"),
        ("key,title\na.jpg\n", "line 2: 1 cells where the first line names 2 columns"),
        ("key,title\na.jpg,x\n../b.jpg,y\n", "line 3: the key is absolute"),
        ("key\nhttps://shop/a.jpg\n", "line 2: 'https://shop/a.jpg' is an address"),
        ("key,box\na.jpg,wide\n", "line 2: points and box are written as JSON"),
        ('key,box\na.jpg,"[9, 9, 1, 1]"\n', "line 2: box must be left, top, right, bottom"),
        ("key,seed\na.jpg,-1\n", "line 2: seed must be at least 0, not"),
        ('key,box\na.jpg,"[1, 2, 3]"\n', "line 2: box[4] is missing"),
        ('key,points\na.jpg,"[[1, 2, 3]]"\n', "line 2: points[1][3] must be at most 1, not 3. Nothing"),
        ("key,mask\na.jpg,/etc/passwd\n", "line 2: mask: the key is absolute"),
        ('key\n"a.jpg', "not valid CSV"),
        (b"key,title\na.jpg,\xe9t\xe9\n", "not UTF-8"),
    ],
)
def test_a_broken_manifest_is_refused_whole(tmp_path: Path, text: str | bytes, said: str) -> None:
    """The message names the line, and nothing is submitted."""
    with pytest.raises(UsageError) as caught:
        csv_file(tmp_path, text).check()
    assert said in str(caught.value)


def test_a_thousand_broken_rows_are_counted_rather_than_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        csv_file(tmp_path, "key\n" + "../x\n" * 1000).check()
    assert "and 995 more" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["items.xlsx", "missing.csv"])
def test_what_is_not_a_manifest_is_told(tmp_path: Path, name: str) -> None:
    if name != "missing.csv":
        (tmp_path / name).write_text("key\na\n")
    with pytest.raises(UsageError):
        Manifest(tmp_path / name).check()


@pytest.mark.parametrize(
    ("recipe", "fields", "changed"),
    [
        ({}, {"title": "Shoe", "prompt": "x", "points": [[1, 2, 1]]}, set()),
        ({"background": {"model": "diffusion"}}, {"prompt": "a beach"}, {"inpainting", "captioning"}),
        ({"segmentation": {"model": "sam"}}, {"box": [1, 2, 3, 4]}, {"segmentation", "inpainting", "captioning"}),
        ({"caption": {"model": "vlm"}}, {"title": "Shoe", "id": "17"}, {"captioning"}),
    ],
)
def test_a_field_renames_only_the_outputs_that_look_at_it(
    recipe: dict[str, Any], fields: dict[str, Any], changed: set[str]
) -> None:
    """A new title does not cut the product out again."""
    plan = Plan(Recipe.from_mapping(recipe))
    plain, told = plan.outputs("a.jpg", "e"), plan.outputs("a.jpg", "e", fields)
    assert {stage for stage in plain.keys if plain.keys[stage] != told.keys[stage]} == changed
