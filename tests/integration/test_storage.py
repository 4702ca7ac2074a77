"""What every storage promises, checked on the folder, on memory and on a real S3 server."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.utils import parse_timestamp
from pydantic import SecretStr

from producer.copying import Copied, copy_objects
from producer.embedded import S3Server, free_port
from shared.errors import (
    KeyRefusedError,
    ObjectMissingError,
    PictureTooLargeError,
    StorageError,
    StorageRefusedError,
    UsageError,
)
from shared.settings import Settings
from shared.storage import MemoryStorage, Storage, open_storage
from shared.storage.s3 import S3Storage, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def s3_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        keys = {"access_key_id": SecretStr("test"), "secret_access_key": SecretStr("test-secret")}
        yield Settings(endpoint_url=server.url, s3_attempts=1, **keys)


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "memory":
        return MemoryStorage()
    if request.param == "local":
        return open_storage(str(tmp_path / "root"), Settings())
    settings = request.getfixturevalue("s3_settings")
    made = S3Storage.from_settings(f"s3://bucket/{tmp_path.name}/{abs(hash(request.node.name))}", settings)
    made.ensure_bucket()
    return made


def test_what_was_put_is_read_back_whole(storage: Storage) -> None:
    """Bytes, type and metadata come back as they were given."""
    assert storage.put("a/b c.png", b"\x00\xff", content_type="image/png", metadata={"vitrina": "{}"})
    blob = storage.get("a/b c.png")
    assert (blob.data, blob.stat.size, blob.stat.content_type) == (b"\x00\xff", 2, "image/png")
    assert blob.stat.metadata == {"vitrina": "{}"}
    head = storage.head("a/b c.png")
    assert head is not None
    assert head.metadata == blob.stat.metadata
    assert head.etag == blob.stat.etag == next(iter(storage.list())).etag


def test_listing_is_in_key_order_and_resumes_after_a_key(storage: Storage) -> None:
    """A cursor is a key: whatever the storage, the order is that of UTF-8 bytes."""
    keys = ["a.jpg", "a/1.jpg", "a/я.jpg", "a0.jpg", "b/c/d.jpg", "b.jpg", "ё.jpg", "z z.jpg"]
    for key in keys:
        storage.put(key, b"x")
    expected = sorted(keys, key=str.encode)
    assert [stat.key for stat in storage.list()] == expected
    for position, key in enumerate(expected):
        assert [stat.key for stat in storage.list(after=key)] == expected[position + 1 :]
    assert [stat.key for stat in storage.list("a/")] == ["a/1.jpg", "a/я.jpg"]
    assert [stat.key for stat in storage.list("b")] == ["b.jpg", "b/c/d.jpg"]


def test_what_is_absent_is_told_plainly(storage: Storage) -> None:
    """Absence is an answer to `head`, an error to `get`, nothing to `delete`."""
    storage.put("there", b"x")
    assert storage.head("nothing") is None
    with pytest.raises(ObjectMissingError):
        storage.get("nothing")
    storage.delete("nothing")
    storage.delete("there")
    assert storage.head("there") is None


def test_an_object_over_the_limit_is_refused(storage: Storage) -> None:
    """The limit protects memory: it is checked before reading."""
    storage.put("big", b"x" * 100)
    with pytest.raises(PictureTooLargeError):
        storage.get("big", limit=99)
    assert len(storage.get("big", limit=100).data) == 100


def test_a_new_content_has_a_new_etag(storage: Storage) -> None:
    """Fingerprints rest on it."""
    storage.put("k", b"one")
    before = storage.get("k").stat.etag
    storage.put("k", b"three")
    assert storage.get("k").stat.etag != before


def test_a_conditional_put_keeps_the_first(storage: Storage) -> None:
    """The second writer is told and changes nothing."""
    assert storage.put("k", b"first", if_absent=True)
    assert not storage.put("k", b"second", if_absent=True)
    assert storage.get("k").data == b"first"


def test_of_many_conditional_puts_one_content_stays(storage: Storage) -> None:
    """Whole, whoever wins."""
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(storage.put("race", bytes([i]) * 1000, if_absent=True)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(answers)
    assert len(set(storage.get("race").data)) == 1


def test_a_writable_storage_says_so_and_keeps_nothing(storage: Storage) -> None:
    """The probe leaves no object."""
    storage.check_writable()
    assert list(storage.list()) == []


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a//b", "."])
def test_a_folder_cannot_be_left(tmp_path: Path, key: str) -> None:
    """No key reaches outside the root."""
    storage = open_storage(str(tmp_path / "root"), Settings())
    with pytest.raises(KeyRefusedError):
        storage.put(key, b"x")
    with pytest.raises(KeyRefusedError):
        storage.get(key)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """Neither read nor written through; it is listed, so that what it stands for becomes a failure that says what to do."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(outside)
    (tmp_path / "root" / "file").symlink_to(outside / "secret")
    storage = open_storage(str(tmp_path / "root"), Settings())
    storage.put("here/1.jpg", b"x")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "here")
    (tmp_path / "root" / "again.jpg").symlink_to(tmp_path / "root" / "here" / "1.jpg")
    (tmp_path / "root" / "nowhere").symlink_to(tmp_path / "root" / "gone")
    (tmp_path / "root" / "circle").symlink_to(tmp_path / "root" / "circle")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    assert [stat.key for stat in storage.list()] == ["again.jpg", "file", "here/1.jpg", "link", "up"]
    for key in ("file", "link", "up"):
        with pytest.raises(KeyRefusedError, match="put a copy of what it leads to in its place"):
            storage.get(key)
    with pytest.raises(KeyRefusedError):
        storage.get("link/secret")


def test_a_folder_that_cannot_be_made_is_told() -> None:
    """With the next step."""
    with pytest.raises(StorageRefusedError, match=r"nothing can be made at /proc/shop: choose another folder"):
        open_storage("/proc/shop", Settings()).check_writable()


def test_what_was_put_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, name and the folders made for it are written through, each before what follows is told."""
    done: list[str] = []
    rename, fsync = Path.replace, os.fsync

    def synced(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"renamed to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    storage = open_storage(str(tmp_path / "shop"), Settings())
    storage.put("a/b/1.jpg", b"x")
    shop = tmp_path / "shop"
    assert done[0].endswith(".part")
    assert done[1:] == ["renamed to 1.jpg", *map(str, [shop / "a" / "b", shop / "a", shop, tmp_path])]
    done.clear()
    storage.put("a/b/2.jpg", b"x", if_absent=True)
    assert done[0].endswith(".part")
    assert done[1:] == [str(shop / "a" / "b")]


def test_a_file_in_the_way_of_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    """`a` cannot hold `a/b`."""
    storage = open_storage(str(tmp_path / "root"), Settings())
    storage.put("a", b"x")
    with pytest.raises(StorageRefusedError):
        storage.put("a/b", b"x")


def test_a_folder_that_goes_while_it_is_listed_ends_no_listing(tmp_path: Path) -> None:
    """The others are listed; when the whole place goes, that is told."""
    folder = open_storage(str(tmp_path / "shop"), Settings())
    for name in ("a/1.jpg", "b/1.jpg", "c/1.jpg"):
        folder.put(name, b"x")
    listing = folder.list()
    assert next(listing).key == "a/1.jpg"
    shutil.rmtree(tmp_path / "shop" / "b")
    assert [stat.key for stat in listing] == ["c/1.jpg"]
    listing = folder.list()
    next(listing)
    shutil.rmtree(tmp_path / "shop")
    with pytest.raises(StorageError, match="shop"):
        list(listing)


def test_what_is_moved_into_a_folder_is_new_there(tmp_path: Path) -> None:
    """Though it keeps its own time, as with mv and rsync; as a server tells when an object came, not when it was made."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "old.jpg").write_bytes(b"x")
    os.utime(tmp_path / "old.jpg", (1e9, 1e9))
    (tmp_path / "old.jpg").rename(tmp_path / "shop" / "old.jpg")
    folder = open_storage(str(tmp_path / "shop"), Settings())
    head = folder.head("old.jpg")
    assert head is not None
    assert head.modified == next(folder.list()).modified > time.time() - 60


def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path: Path) -> None:
    """Names of other alphabets take two bytes a letter, or four."""
    folder = open_storage(str(tmp_path), Settings())
    for letter in ("x", "ы", "🏺"):
        key = letter * (240 // len(letter.encode())) + ".jpg"
        assert folder.put(key, b"x", metadata={"made": "here"})
        assert folder.get(key).stat.metadata == {"made": "here"}


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """With the path and the next step."""
    with pytest.raises(StorageRefusedError, match="create it"):
        list(open_storage(str(tmp_path / "nowhere"), Settings()).list())


def test_a_missing_bucket_is_told(s3_settings: Settings) -> None:
    """With its name and the next step."""
    storage = open_storage("s3://no-such-bucket/x", s3_settings)
    with pytest.raises(StorageRefusedError, match="no-such-bucket"):
        list(storage.list())
    with pytest.raises(StorageRefusedError):
        storage.check_writable()


def test_a_silent_server_is_an_error_that_may_pass() -> None:
    """No S3 server at all: retried by tasks, one line for an operator."""
    keys = {"access_key_id": SecretStr("a"), "secret_access_key": SecretStr("b")}
    settings = Settings(endpoint_url=f"http://127.0.0.1:{free_port()}", s3_attempts=1, **keys)
    with pytest.raises(StorageError, match="endpoint-url") as silent:
        open_storage("s3://bucket", settings).get("x")
    assert silent.value.retryable


def test_loopback_never_goes_through_a_proxy(s3_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded server must answer on machines that reach the world through one."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    other = s3_settings.model_copy(update={"threads": 3})  # not the client that the other tests share
    storage = S3Storage.from_settings("s3://proxied", other)
    storage.ensure_bucket()
    storage.check_writable()


@contextmanager
def answering(*statuses: int) -> Iterator[tuple[Storage, list[bool]]]:
    """Serve an S3 server that has no object and answers uploads with `statuses`, the last one for ever; list which had a condition."""
    left, conditions = list(statuses), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # or the client waits a second to be told to go on

        def do_HEAD(self) -> None:
            self.answer(404)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            conditions.append("If-None-Match" in self.headers)
            self.answer(left.pop(0) if len(left) > 1 else left[0])

        def answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        keys = {"access_key_id": SecretStr("a"), "secret_access_key": SecretStr("b")}
        settings = Settings(endpoint_url=f"http://127.0.0.1:{server.server_port}", s3_attempts=1, **keys)
        try:
            yield open_storage("s3://bucket", settings), conditions
        finally:
            server.shutdown()
            thread.join()


def test_a_server_without_conditions_is_asked_plainly_from_then_on() -> None:
    """Some that speak S3 do not know `If-None-Match`."""
    with answering(501, 200) as (storage, conditions):
        assert storage.put("k", b"x", if_absent=True)
        assert storage.put("l", b"x", if_absent=True)
        assert conditions == [True, False, False]


@pytest.mark.parametrize("status", [501, 409])
def test_a_server_that_refuses_every_upload_is_an_error(status: int) -> None:
    """After a few tries, and never a claim that something was there."""
    with answering(status) as (storage, conditions), pytest.raises(StorageError, match="s3://bucket/k"):
        storage.put("k", b"x", if_absent=True)
    assert len(conditions) <= 5


def test_a_conflict_of_two_writers_is_asked_again() -> None:
    """S3 may have written neither of the two."""
    with answering(409, 200) as (storage, conditions):
        assert storage.put("k", b"x", if_absent=True)
        assert conditions == [True, True]
    with answering(412) as (storage, _):
        assert not storage.put("k", b"x", if_absent=True)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "2026-11-28T12:00:00.000Z",
        "2026-11-28T12:00:00+03:00",
        "Sat, 28 Nov 2026 12:00:00 GMT",
        "20261128",
        1764331200.5,
    ],
)
def test_times_are_what_botocore_reads(text: str | float) -> None:
    """Those of a listing, of a header, and of seconds since 1970, whoever writes them."""
    assert parse_time(text) == parse_timestamp(text)


def test_what_is_no_regular_file_is_no_object(tmp_path: Path) -> None:
    """A pipe is not listed, and reading it waits for nobody."""
    storage = open_storage(str(tmp_path), Settings())
    storage.put("photo.jpg", b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [stat.key for stat in storage.list()] == ["photo.jpg"]
    assert storage.head("pipe.jpg") is None
    with pytest.raises(ObjectMissingError):
        storage.get("pipe.jpg")


def test_what_cannot_be_looked_at_is_not_called_absent(tmp_path: Path) -> None:
    """A link in a circle stands for every fault but absence, since to root, who may run this, no permission is missing."""
    storage = open_storage(str(tmp_path), Settings())
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    with pytest.raises(StorageRefusedError, match="permissions"):
        storage.head("circle.jpg")
    storage.put("file", b"x")
    assert storage.head("file/below") is storage.head("nowhere/below") is storage.head("x" * 300) is None


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x", "http://host/x"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    """A bucket or a folder is the contract."""
    with pytest.raises(UsageError):
        open_storage(url, Settings())


def test_secrets_are_never_shown() -> None:
    """Not in `repr`, which lands in logs."""
    settings = Settings(broker=SecretStr("redis://:hunter2@host/0"), secret_access_key=SecretStr("hunter2"))
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_copying_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    """Every object with its metadata, from any storage to any other; what is there and no older is left alone."""
    memory, folder = MemoryStorage(), open_storage(str(tmp_path / "copy"), Settings())
    for number in range(100):
        memory.put(f"a/{number:03d}.jpg", b"%d" % number, content_type="image/jpeg", metadata={"made": "here"})
    first = MemoryStorage("first")
    for stat in memory.list("a/00"):
        first.put(stat.key, memory.get(stat.key).data)
    assert copy_objects(first, folder) == Copied(copied=10)
    assert copy_objects(memory, folder) == Copied(copied=90, there=10)
    blob = folder.get("a/042.jpg")
    assert (blob.data, blob.stat.content_type, blob.stat.metadata) == (b"42", "image/jpeg", {"made": "here"})
    memory.put("a/042.jpg", b"changed")
    memory.put("a//b.jpg", b"no path")
    refused: list[str] = []
    assert copy_objects(memory, folder, refused.append) == Copied(copied=1, there=99, refused=1)
    assert "a//b.jpg" in refused[0]
    assert folder.get("a/042.jpg").data == b"changed"
