"""Where photos come from: listings, globs, samples, manifests and standard input."""

from __future__ import annotations

import io
import itertools
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from producer.embedded import S3Server
from producer.manifest import look_up
from producer.selection import Selection, parse_since
from shared.errors import UsageError
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import MemoryStorage, in_parallel, open_storage
from shared.storage import ahead as ahead_module
from shared.storage.ahead import FOLDERS
from shared.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shared.storage import Storage

KEYS = [
    "a.jpg",
    "b.tmp",
    *(f"shoes/{number:04d}.jpg" for number in range(1200)),
    *(f"hats/{year}/{number}.png" for year in (2024, 2025) for number in range(3)),
    "z/last.jpg",
]
OUT = open_storage("memory://catalogue", Settings())


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Storage]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        keys = {"access_key_id": SecretStr("a"), "secret_access_key": SecretStr("b")}
        storage = S3Storage.from_settings("s3://shop/photos", Settings(endpoint_url=server.url, **keys))
        storage.ensure_bucket()
        for key in KEYS:
            storage.put(key, key.encode())
        yield storage


@pytest.fixture
def shop() -> MemoryStorage:
    storage = MemoryStorage()
    for key in KEYS:
        storage.put(key, key.encode())
    return storage


def taken(selection: Selection, source: Storage, *, listed: int = 0, last: str = "") -> list[str]:
    found = selection.photos(source, OUT, Recipe(), listed=listed, last=last)
    return [photo.key for photo in found]


def test_a_listing_that_reads_ahead_is_the_plain_one(bucket: S3Storage) -> None:
    """The same objects in the same order, from any key on."""
    plain = [stat.key for stat in bucket.list()]
    assert plain == sorted(KEYS)
    assert [stat.key for stat in bucket.list(ahead=True)] == plain
    for after in ("a.jpg", "hats/2024/1.png", "shoes/0500.jpg", "shoes/1199.jpg", "nothing", "z/last.jpg"):
        assert [stat.key for stat in bucket.list(after=after, ahead=True)] == [key for key in plain if key > after]
    inside = S3Storage.from_settings("s3://shop", bucket._settings)
    assert [stat.key for stat in inside.list(ahead=True)] == [f"photos/{key}" for key in plain]


def filled(url: str, beside: S3Storage, keys: list[str]) -> S3Storage:
    """Return a bucket of its own with these keys."""
    storage = S3Storage.from_settings(url, beside._settings)
    storage.ensure_bucket()
    list(in_parallel(storage, lambda key: storage.put(key, b"x"), keys))
    return storage


@contextmanager
def counted(storage: S3Storage) -> Iterator[list[str]]:
    """Note the prefix of each page of a listing that is asked for."""
    asked: list[str] = []

    def note(params: dict[str, Any], **_: object) -> None:
        asked.append(params["Prefix"])

    events = storage._client.meta.events
    events.register("provide-client-params.s3.ListObjectsV2", note)
    try:
        yield asked
    finally:
        events.unregister("provide-client-params.s3.ListObjectsV2", note)


def test_small_folders_cost_no_request_each(bucket: S3Storage) -> None:
    """Most shops have a folder per product: after the first few they are read as one listing, none missed and none twice."""
    keys = sorted(
        [f"sku{number:04d}/{view}.jpg" for number in range(200) for view in range(1 + number % 2)]
        + ["readme.txt", "sku0007.txt", "sku0099.txt"]
    )
    many = filled("s3://many/photos", bucket, keys)
    with counted(many) as plain:
        assert [stat.key for stat in many.list()] == keys
    with counted(many) as ahead:
        assert [stat.key for stat in many.list(ahead=True)] == keys
    assert len(ahead) <= len(plain) + 2 * FOLDERS + 1
    for after in ("sku0003/0.jpg", "sku0007/0.jpg", "sku0012.txt", "sku0190/0.jpg"):
        assert [stat.key for stat in many.list(after=after, ahead=True)] == [key for key in keys if key > after]


def test_large_folders_are_read_side_by_side(bucket: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that fills pages is worth requests of its own, to the last one."""
    monkeypatch.setattr(ahead_module, "_PAGE", 20)
    keys = [f"{folder:02d}/{number:02d}.jpg" for folder in range(12) for number in range(11)]
    large = filled("s3://large/photos", bucket, keys)
    with counted(large) as asked:
        assert [stat.key for stat in large.list(ahead=True)] == keys
    assert set(asked) == {"photos/", *(f"photos/{folder:02d}/" for folder in range(12))}


def test_a_listing_that_is_left_early_stops_reading(bucket: S3Storage) -> None:
    """Nobody waits for folders that nobody wants."""
    stream = bucket.list(ahead=True)
    assert next(stream).key == "a.jpg"
    stream.close()  # type: ignore[attr-defined] # a generator


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.jpg"], ["shoes/**"], ["a.jpg", "z/last.jpg"]),
        (["hats/*/1.png"], [], ["hats/2024/1.png", "hats/2025/1.png"]),
        (["hats/**"], ["**/2024/*"], ["hats/2025/0.png", "hats/2025/1.png", "hats/2025/2.png"]),
        (["?.jpg"], [], ["a.jpg"]),
        (["[!b-z].jpg", "**/l*"], [], ["a.jpg", "z/last.jpg"]),
        ([], ["shoes/**", "hats/**"], ["a.jpg", "b.tmp", "z/last.jpg"]),
        (["A.JPG"], [], []),
    ],
)
def test_globs_choose_keys(shop: Storage, include: list[str], exclude: list[str], expected: list[str]) -> None:
    """`*` stays in its folder, `**` does not, a pattern without a slash is of names, what is excluded wins."""
    assert taken(Selection(include=tuple(include), exclude=tuple(exclude)), shop) == expected


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(limit=700),
        Selection(sample=300),
        Selection(include=("shoes/**",), exclude=("**/*7.jpg",), limit=900),
    ],
)
def test_a_selection_goes_on_where_it_ended(shop: Storage, selection: Selection) -> None:
    """At any point, missing and repeating nothing."""
    whole = taken(selection, shop)
    assert Selection.from_dict(selection.to_dict()) == selection
    for listed in (0, 1, 150, len(whole) - 1, len(whole)):
        last = whole[listed - 1] if listed else ""
        assert taken(selection, shop, listed=listed, last=last) == whole[listed:]


def test_a_sample_is_even_and_the_same_each_time(shop: Storage) -> None:
    """In listing order, spread over everything; a larger one holds the smaller."""
    sample = taken(Selection(sample=100), shop)
    assert len(sample) == 100
    assert sample == sorted(sample)
    assert set(sample) < set(taken(Selection(sample=200), shop))
    firsts = sum(key < "shoes/0600" for key in sample)
    assert 30 < firsts < 70
    assert len(taken(Selection(sample=10_000), shop)) == len(KEYS)


def test_what_desktops_leave_in_folders_is_no_photo(shop: MemoryStorage) -> None:
    """Nobody wants a failure for each folder that was opened once."""
    for name in ("Thumbs.db", "shoes/desktop.ini", "hats/.DS_Store", "hats/._mug.jpg"):
        shop.put(name, b"x")
    assert sorted(taken(Selection(), shop)) == sorted(KEYS)


def test_times_are_dates_or_spans() -> None:
    """Of UTC unless they say otherwise."""
    assert parse_since("2026-11-01") == 1793491200
    assert parse_since("2026-11-01T12:00+02:00") == 1793491200 + 10 * 3600
    assert parse_since("24h", now=100_000) == 100_000 - 86_400
    for wrong in ("yesterday", "7", "-3d"):
        with pytest.raises(UsageError, match="24h"):
            parse_since(wrong)


def test_only_what_changed_since_is_taken(shop: MemoryStorage) -> None:
    """By the storage's own clock."""
    newest = max(stat.modified for stat in shop.list())
    assert taken(Selection(modified_since=newest + 60), shop) == []
    assert len(taken(Selection(modified_since=newest - 3600), shop)) == len(KEYS)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(include=("/shoes/*",)), "relative to the source"),
        (Selection(include=("s3://shop/*",)), "relative to the source"),
        (Selection(limit=3, sample=3), "choose one"),
        (Selection(manifest="items.csv", modified_since=1.0), "manifest"),
        (Selection(manifest="items.txt"), r"\.parquet"),
    ],
)
def test_what_cannot_be_selected_is_told_first(selection: Selection, words: str) -> None:
    """With what to do instead."""
    with pytest.raises(UsageError, match=words):
        selection.check()


def test_a_job_of_another_release_is_not_guessed_at() -> None:
    """What it asks for beyond what is known is named."""
    with pytest.raises(UsageError, match="colour"):
        Selection.from_dict({"colour": "red"})


def test_a_key_is_taken_once(shop: Storage, tmp_path: Path) -> None:
    """However often a manifest names it; rows that say different things are told, and the first counts."""
    table = tmp_path / "items.csv"
    table.write_text("key,title\na.jpg,Mug\nz/last.jpg,\na.jpg,Mug\na.jpg,Cup\n")
    selection = Selection(manifest=str(table))
    assert selection.check() == [
        f"{table}: 1 rows name a photo again; each is taken once",
        f"{table}: 1 rows name a photo again and say other things of it; the first of each counts, not line 5 (a.jpg)",
    ]
    photos = list(selection.photos(shop, OUT, Recipe()))
    assert [(photo.key, dict(photo.fields)) for photo in photos] == [("a.jpg", {"title": "Mug"}), ("z/last.jpg", {})]


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Put this on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def test_keys_come_from_standard_input(shop: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a line or as JSON, once each, whatever the terminal's encoding; read once and there as often as it is asked for."""
    piped(monkeypatch, '\ufeffa.jpg\r\n\n{"key": "z/last.jpg", "sku": "7"}\na.jpg\nчашка.jpg\n'.encode())
    selection = Selection(manifest="-")
    assert selection.check() == ["standard input: 1 rows name a photo again; each is taken once"]
    assert selection.table.rows == 4
    assert len(list(selection.photos(shop, OUT, Recipe()))) == 3
    photos = list(look_up(selection.photos(shop, OUT, Recipe()), shop))
    assert [(photo.key, bool(photo.etag), dict(photo.fields)) for photo in photos] == [
        ("a.jpg", True, {}),
        ("z/last.jpg", True, {"id": "7"}),
        ("чашка.jpg", False, {}),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a.jpg\nhttps://shop.example/b.jpg\n", r"standard input: line 2: .* address.* Nothing was submitted"),
        (b"a.jpg\n\xe9.jpg\n{bad\n", "standard input: line 2: not UTF-8.*; line 3: not valid JSON. Nothing"),
        (b"", "standard input has no rows: nothing to submit"),
    ],
)
def test_standard_input_is_checked_before_anything_is_submitted(
    monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    """Like any manifest."""
    piped(monkeypatch, data)
    with pytest.raises(UsageError, match=words):
        Selection(manifest="-").check()


def test_a_sample_goes_on_in_a_source_that_has_changed(shop: MemoryStorage) -> None:
    """What was added and removed meanwhile shifts nothing: no photo twice, and none beyond the number asked for."""
    selection = Selection(sample=100)
    first = taken(selection, shop)[:40]
    for key in [*KEYS[:300], *first[:5]]:
        shop.delete(key)
    for number in range(300):
        shop.put(f"added/{number}.jpg", b"x")
        shop.put(f"shoes/{number:04d}b.jpg", b"x")
    rest = taken(selection, shop, listed=40, last=first[-1])
    assert len(rest) == 60
    assert min(rest) > first[-1]


def test_a_parquet_manifest_says_the_same_as_a_csv(shop: Storage, tmp_path: Path) -> None:
    """Numbers and lists as they are; empty cells are absent; what is no Parquet file is told."""
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import parquet  # noqa: PLC0415 - an extra

    table = pa.table(
        {"key": ["a.jpg", "z/last.jpg"], "seed": [7, None], "box": [None, [0, 0, 9, 9]], "price": [1.5, 2.5]}
    )
    path = tmp_path / "items.parquet"
    parquet.write_table(table, path)
    selection = Selection(manifest=str(path))
    assert selection.check() == [f"{path}: columns that are not used: price"]
    assert selection.table.rows == 2
    fields = [dict(photo.fields) for photo in selection.photos(shop, OUT, Recipe())]
    assert [next(iter(row.values())) for row in fields] == [7, [0, 0, 9, 9]]
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="not a Parquet file"):
        Selection(manifest=str(path)).check()
    parquet.write_table(pa.table({"name": ["a.jpg"]}), path)
    with pytest.raises(UsageError, match="column `key`"):
        Selection(manifest=str(path)).check()


def test_a_long_manifest_is_read_in_flat_memory(shop: Storage, tmp_path: Path) -> None:
    """Row by row, however many there are."""
    import tracemalloc  # noqa: PLC0415 - used here alone

    chance = random.Random(1)  # noqa: S311 - repeatable
    table = tmp_path / "items.csv"
    with table.open("w") as file:
        file.write("key,title\n")
        file.writelines(f"a/{chance.random()}.jpg,Mug {number}\n" for number in range(60_000))
    tracemalloc.start()
    try:
        Selection(manifest=str(table)).check()
        list(itertools.islice(Selection(manifest=str(table)).photos(shop, OUT, Recipe()), 5))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
