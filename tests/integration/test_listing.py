"""What of a source is no photo: catalogues that earlier jobs made there."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest
from made_commands import last_line, vitrina
from pydantic import SecretStr

from producer.embedded import S3Server
from producer.listing import list_photos
from shared.settings import Settings
from shared.storage import MemoryStorage
from shared.storage.s3 import S3Storage
from shared.storage.synthetic import SyntheticStorage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from made_jobs import Catalogue

MARK = "0123456789abcdef"
PHOTOS = [
    "a.jpg",
    f"cms/image-{MARK}.jpg",  # another's way to name photos
    "cutout-1.png",
    "jobs/2026/b.jpg",
    "shelf.jpg/mask.png",
]
OUTPUTS = [
    *(f"old/a.jpg/{name}-{MARK}.{ending}" for name, ending in (("mask", "png"), ("image", "jpg"), ("caption", "json"))),
    f"Тапки.JPEG/cutout-{MARK}.png",
    "old/jobs/20261123-142501-3f9a2c/recipe.json",
    "old/jobs/20261123-142501-3f9a2c/items/0000000000.jsonl",
    f"old/backgrounds/{MARK}.png",
    f"watching/{MARK}.json",
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Storage]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        keys = {"access_key_id": SecretStr("a"), "secret_access_key": SecretStr("b")}
        storage = S3Storage.from_settings("s3://shop", Settings(endpoint_url=server.url, **keys))
        storage.ensure_bucket()
        for key in [*PHOTOS, *OUTPUTS]:
            storage.put(key, b"x")
        yield storage


def test_outputs_of_earlier_jobs_are_no_photos(
    bucket: S3Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are told by their keys alone, at the cost of the listing; that they are left out is said once."""
    monkeypatch.setattr("producer.listing._told", set())
    calls: list[str] = []
    bucket._client.meta.events.register("before-call.s3", lambda model, **_: calls.append(model.name))
    for _ in range(2):
        assert [photo.key for photo in list_photos(bucket, MemoryStorage())] == PHOTOS
    assert set(calls) == {"ListObjectsV2"}
    assert [record.getMessage().startswith("s3://shop holds outputs of other jobs") for record in caplog.records] == [
        True
    ]


def test_a_source_without_end_is_listed_as_far_as_it_is_read() -> None:
    """Nothing is looked at ahead of what is asked for."""
    photos = list_photos(SyntheticStorage("9999999999"), MemoryStorage())
    assert [photo.key[-6:] for photo in islice(photos, 2)] == ["00.jpg", "01.jpg"]


def test_a_catalogue_below_the_photos_is_not_made_again(catalogue: Catalogue, tmp_path: Path) -> None:
    """A second job takes the photos that the first one took, wherever it writes to."""
    catalogue.add("mug.jpg", "a mug")
    broker = catalogue.settings.broker.get_secret_value()
    below, beside = catalogue.photos / "sub", tmp_path / "beside"
    for out in (below, beside):
        done = vitrina("run", str(catalogue.photos), "--out", str(out), "--broker", broker, "--json")
        assert (done.returncode, last_line(done)["items"]) == (0, 1), done.stderr
        assert ("holds outputs of other jobs" in done.stderr) == (out is beside)
    assert sorted(path.name for path in beside.iterdir() if not path.name.startswith(".")) == ["jobs", "mug.jpg"]
