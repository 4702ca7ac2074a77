"""Manifests: every row is checked before anything is submitted, and what is wrong is named by its line."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from producer.estimate import CHECKED, estimate
from producer.manifest import Manifest, look_up
from producer.selection import Selection
from shared.errors import JobDamagedError, UsageError
from shared.jobs import PHOTOS, read_photos, save_photos
from shared.messages import Photo
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
        "\ufeffkey,id,title,box,price,promt,title_de\r\n"
        'a.jpg,17,"Shoe, left","[1, 2, 30, 40]",9.99,,\r\n'
        "gone.jpg,,,,,,\r\n"
        "b.jpg,18,,,,,\r\n",
    )
    assert manifest.check() == 3
    assert manifest.notes == [
        f"{manifest.name}: columns that are not used: price, promt (did you mean prompt?), title_de"
    ]
    photos = list(look_up(manifest.photos(), source))
    assert [photo.key for photo in photos] == ["a.jpg", "gone.jpg", "b.jpg"]
    assert photos[0].fields == {"id": "17", "title": "Shoe, left", "box": [1.0, 2.0, 30.0, 40.0]}
    assert photos[0].etag == next(source.list()).etag
    assert photos[1].etag == ""
    assert photos[2].fields == {"id": "18"}


class Counting(MemoryStorage):
    """Counts what is looked up."""

    looked = 0

    def head(self, key: str) -> Stat | None:
        self.looked += 1
        return super().head(key)


def test_rows_are_chosen_before_they_are_looked_up(tmp_path: Path) -> None:
    """A sample of five costs five requests, whatever it is taken from; so does a limit, and a dry run asks for what it judges by."""
    (tmp_path / "m.csv").write_text("key\n" + "".join(f"{number:04}.jpg\n" for number in range(3000)))
    manifest = str(tmp_path / "m.csv")
    for selection in (Selection(manifest=manifest, sample=5), Selection(manifest=manifest, limit=5)):
        source = Counting()
        assert len(list(look_up(selection.photos(source, source, Recipe()), source))) == 5
        assert source.looked == 5
    source = Counting()
    found = estimate(Selection(manifest=manifest).photos(source, source, Recipe()), source, MemoryStorage(), Recipe())
    assert (found.photos, found.refused) == (3000, 3000)
    assert source.looked == CHECKED


def test_what_a_job_takes_of_a_manifest_is_read_again_from_any_row_on() -> None:
    """Over pages, full or not; a page that has gone is told rather than passed over."""
    storage = MemoryStorage()
    for count in (0, 1, PHOTOS - 1, PHOTOS, PHOTOS + 3):
        photos = [Photo(f"{number}.jpg", "", {"seed": number} if number % 2 else {}) for number in range(count)]
        save_photos(storage, f"job{count}", iter(photos))
        for since in {0, count // 2, max(0, count - 1), count}:
            assert list(read_photos(storage, f"job{count}", since=since)) == photos[since:]
    storage.delete(f"jobs/job{PHOTOS}/photos/{PHOTOS:010d}.jsonl")
    with pytest.raises(JobDamagedError, match="submit again with --manifest"):
        list(read_photos(storage, f"job{PHOTOS}"))


def test_a_manifest_is_what_was_checked_whatever_becomes_of_its_file(tmp_path: Path) -> None:
    """An editor may save it in between."""
    manifest = csv_file(tmp_path, "key\na.jpg\nb.jpg\n")
    assert manifest.check() == 2
    (tmp_path / "items.csv").write_text("key\n../etc\n")
    assert [photo.key for photo in manifest.photos()] == ["a.jpg", "b.jpg"]
    assert [photo.key for photo in manifest.photos(lambda key: key != "a.jpg")] == ["b.jpg"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_ten_thousand_columns_take_the_memory_of_those_that_are_used(tmp_path: Path, kind: str) -> None:
    """An export of everything a shop knows is a manifest as well."""
    columns, rows = 10_000, 120
    path = tmp_path / f"wide.{kind}"
    others = [f"attribute_{number}" for number in range(columns)]
    if kind == "csv":
        tail = "".join(f",value {number}" for number in range(columns))
        lines = [f"{number}.jpg{tail}\n" for number in range(rows)]
        path.write_text(f"key,{','.join(others)}\n{''.join(lines)}")
    elif kind == "jsonl":
        tail = json.dumps({name: f"value of {name}" for name in others})[1:]
        path.write_text("".join(f'{{"key": "{number}.jpg", {tail}\n' for number in range(rows)))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow = pytest.importorskip("pyarrow")
        table = {name: pyarrow.array(["a value of some length"] * rows) for name in others}
        parquet.write_table(pyarrow.table({**table, "key": [f"{number}.jpg" for number in range(rows)]}), path)
        del table
    manifest = Manifest(path)
    gc.collect()
    tracemalloc.start()
    try:
        assert manifest.check() == rows
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000  # all cells of all rows are over a hundred
    (note,) = manifest.notes
    assert note.startswith(f"{path}: columns that are not used: attribute_0, attribute_1, ")
    assert len(note) < 1000


def test_jsonl_says_the_same(tmp_path: Path) -> None:
    row = {"key": "a.jpg", "points": [[5, 6, 1]], "seed": 7, "category": "shoes"}
    manifest = csv_file(tmp_path, json.dumps(row) + "\n\n", "items.jsonl")
    source = MemoryStorage("memory://shop")
    source.put("a.jpg", b"a")
    assert manifest.check() == 1
    (photo,) = look_up(manifest.photos(), source)
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
        ('key\n"a.jpg', "line 2: not valid CSV"),
        ('key,title\na.jpg,"open\n' + "b.jpg,x\n" * 30_000, "line 2: not valid CSV (field larger"),
        ('key,title\na.jpg,"open\n' + "b.jpg,x\n" * 5, "is a quote opened there and not closed?"),
        (
            b"key,title\na.jpg,x\nb.jpg,\xe9t\xe9\nc.jpg,\xff\n",
            "line 3: not UTF-8: save the table as UTF-8; line 4: not",
        ),
        ("key,title\na.jpg,Стол\n".encode("utf-16"), "line 1: not UTF-8"),
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


def test_a_parquet_file_with_text_that_is_none_is_told(tmp_path: Path) -> None:
    """Its writer may have said UTF-8 and meant another."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    keys = pyarrow.array([b"a.jpg", b"\xe9.jpg"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"key": keys}), tmp_path / "items.parquet")
    with pytest.raises(UsageError, match="rows 1 to 2: not UTF-8"):
        Manifest(tmp_path / "items.parquet").check()


def test_every_wrong_line_of_json_is_told(tmp_path: Path) -> None:
    """Not the first alone; in whatever way it is wrong."""
    lines = [b'{"key": "a.jpg"}', b"{bad", b"[1]", b'{"key": "\xe9.jpg"}', b'{"id": "3"}']
    with pytest.raises(UsageError) as caught:
        csv_file(tmp_path, b"\n".join(lines), "items.jsonl").check()
    told = "line 2: not valid JSON; line 3: not an object with fields; line 4: not UTF-8: save the table as UTF-8; line 5: the key is missing"
    assert told in str(caught.value)


def test_columns_that_nobody_uses_may_be_in_any_encoding(tmp_path: Path) -> None:
    """What is not read cannot be wrong."""
    assert csv_file(tmp_path, b"key,note\na.jpg,\xe9t\xe9\n").check() == 1


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
