"""What the world does to an S3 storage: each fault is injected by a server that answers as told."""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from shared.connection import connect
from shared.errors import StorageError, StorageReadOnlyError, StorageRefusedError
from shared.jobs import Job
from shared.plan import Plan
from shared.progress import Progress
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import Storage, open_storage
from workers.job import OpenJob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = b"a photo of a mug"
FAULTS = {
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "slow_down": (503, "SlowDown"),
    "broken": (500, "InternalError"),
    "read_only": (403, "AccessDenied"),
    "gone": (404, "NoSuchBucket"),
}


MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
UNSIGNED = {
    "unsigned": {"ETag": f'"{MD5}"'},
    "flipped_unsigned": {"ETag": f'"{MD5}"'},
    "other_etag": {"ETag": f'"{MD5[::-1]}"'},
    "in_parts": {"ETag": f'"{MD5[::-1]}-2"'},
    "own_key": {"ETag": f'"{MD5[::-1]}"', "x-amz-server-side-encryption": "aws:kms"},
    "customer_key": {"ETag": f'"{MD5[::-1]}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
}
"""What servers without checksums answer with in their place."""


@contextmanager
def faulty(*script: str, attempts: int = 1) -> Iterator[tuple[Settings, list[str]]]:
    """Serve an S3 server that answers each request by the next word of the script, the last one for ever; list whose key signed each."""
    left, signed = list(script), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            signed.append(self.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
            word = left.pop(0) if len(left) > 1 else left[0]
            if word in FAULTS:
                status, code = FAULTS[word]
                self.answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            elif word == "reset":
                self.close_connection = True
                self.connection.close()
            elif self.command == "GET":
                self.picture(word)
            else:
                self.answer(200, b"")

        do_PUT = do_DELETE = do_GET  # noqa: N815 - the names of HTTP

        def picture(self, word: str) -> None:
            body = {"cut": BODY[:-3], "flipped": b"X" + BODY[1:], "flipped_unsigned": b"X" + BODY[1:]}.get(word, BODY)
            crc = base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode()
            signed = UNSIGNED.get(word, {"x-amz-checksum-crc32": crc})
            self.answer(200, body, **signed, **{"Content-Length": str(len(BODY))})
            if word == "cut":
                self.close_connection = True

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            fixed = {
                "ETag": '"etag"',
                "Last-Modified": "Mon, 23 Nov 2026 12:00:00 GMT",
                "Content-Length": str(len(body)),
            }
            for name, value in (fixed | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a connection that was reset is what we asked for
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield Settings(endpoint_url=address, s3_attempts=attempts, s3_read_timeout=2), signed
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take credentials from a file, as machines with short-lived ones do."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = first\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return path


def opened(settings: Settings) -> Storage:
    return open_storage("s3://bucket", settings)


@pytest.mark.parametrize(
    "fault", ["broken", "slow_down", "reset", "cut", "flipped", "flipped_unsigned", "skewed", "expired"]
)
def test_a_fault_that_may_pass_is_told_as_such(fault: str) -> None:
    """Server errors, throttling, resets, bodies cut short or changed on the way, a wrong clock, expired keys: a task tries again."""
    with faulty(fault) as (settings, _), pytest.raises(StorageError, match="k") as told:
        opened(settings).get("k")
    assert told.value.retryable


@pytest.mark.parametrize("fault", ["broken", "slow_down", "reset"])
def test_a_short_fault_never_reaches_the_task(fault: str) -> None:
    """The client itself asks again."""
    with faulty(fault, "whole", attempts=3) as (settings, signed):
        assert opened(settings).get("k").data == BODY
    assert len(signed) == 2


@pytest.mark.parametrize(
    ("fault", "words"), [("read_only", "credentials and the bucket's policy"), ("gone", "create it")]
)
def test_what_an_operator_must_mend_says_so(fault: str, words: str) -> None:
    """A bucket that went read-only or vanished is not asked again and again."""
    with faulty(fault) as (settings, signed):
        with pytest.raises(StorageRefusedError, match=words) as told:
            opened(settings).put("k", b"x")
        assert not told.value.retryable
        assert len(signed) == 1


@pytest.mark.parametrize("how", ["unsigned", "in_parts", "own_key", "customer_key"])
def test_an_etag_is_taken_for_a_checksum_only_where_it_is_one(how: str) -> None:
    """Those of objects in parts, or encrypted with a key of one's own, say nothing of the content."""
    with faulty(how) as (settings, _):
        assert opened(settings).get("k").data == BODY


def test_a_server_whose_etags_are_something_else_is_believed_at_the_second_look() -> None:
    """The same came twice, so that it is what is there; from then on its ETags are compared no more."""
    with faulty("other_etag") as (settings, signed):
        storage = opened(settings)
        with pytest.raises(StorageError, match="ETag") as told:
            storage.get("k")
        assert told.value.retryable
        assert storage.get("k").data == storage.get("other").data == BODY
        assert len(signed) == 3


def job_at(storage: Storage) -> OpenJob:
    job = Job("job", storage.url, storage.url, Recipe(), 0.0)
    return OpenJob(job, Plan(job.recipe), storage, storage, Progress(connect(Settings()), "job"), None)


def test_a_refused_output_is_told_from_a_storage_that_takes_none() -> None:
    """By writing something else: only then do all photos wait for its owner."""
    with faulty("read_only") as (settings, _), pytest.raises(StorageReadOnlyError, match="bucket's policy"):
        job_at(opened(settings)).put("k", b"x", content_type="image/png", metadata={})
    with faulty("read_only", "whole") as (settings, signed):
        with pytest.raises(StorageRefusedError, match="bucket's policy") as told:
            job_at(opened(settings)).put("k", b"x", content_type="image/png", metadata={})
        assert not isinstance(told.value, StorageReadOnlyError)
        assert len(signed) == 3


def test_expired_credentials_are_read_again(keys: Path) -> None:
    """Whoever renews the file is noticed at the next try."""
    with faulty("expired", "whole") as (settings, signed):
        storage = opened(settings)
        with pytest.raises(StorageError, match="expired"):
            storage.get("k")
        keys.write_text("[default]\naws_access_key_id = second\naws_secret_access_key = s\n")
        assert storage.get("k").data == BODY
    assert signed == ["first", "second"]


def test_keys_that_were_given_outright_are_never_shown() -> None:
    """Not in an error either."""
    with faulty("read_only") as (settings, _):
        secret = settings.model_copy(
            update={"access_key_id": SecretStr("AKIDENT"), "secret_access_key": SecretStr("hush")}
        )
        with pytest.raises(StorageRefusedError) as told:
            opened(secret).get("k")
    assert "hush" not in str(told.value)
