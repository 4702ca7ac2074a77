"""The doctor's look at an S3 server, and a worker's start without a broker: what is the matter is one clear line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from producer.cli import doctor
from producer.embedded import free_port
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take every AWS setting of the machine away."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "VITRINA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


def settings(endpoint: str | None, key: str | None = "vitrina") -> Settings:
    secret = SecretStr(key) if key else None
    return Settings(endpoint_url=endpoint, access_key_id=secret, secret_access_key=secret)


def reset_auth(server: str, after: str) -> None:
    """Let moto check the credentials after that many requests."""
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(
        f"{server}/moto-api/reset-auth", data=after.encode(), headers=headers, method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()


def test_a_server_that_accepts_the_credentials_is_well(server: str) -> None:
    """And its buckets are named."""
    for name in ("photos", "catalogue"):
        urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT"), timeout=10).close()
    name, well, text = doctor.storage(settings(server))
    assert (name, well) == ("S3", True)
    assert server in text
    assert "photos" in text
    assert "catalogue" in text


def test_credentials_that_the_server_refuses_are_told(server: str) -> None:
    """As what is wrong, apart from a server that is away."""
    reset_auth(server, "0")  # from the next request on the server asks whose keys they are, and knows none
    try:
        _, well, text = doctor.storage(settings(server))
    finally:
        reset_auth(server, "inf")
    assert well is False
    assert "refuses the credentials" in text
    assert "correct the key" in text


def test_missing_credentials_are_told(server: str) -> None:
    """With the variables that would give them."""
    _, well, text = doctor.storage(settings(server, None))
    assert well is False
    assert "AWS_ACCESS_KEY_ID" in text


def test_a_server_that_is_away_is_told_within_seconds() -> None:
    """Whether nothing listens, something else does, or nothing ever answers."""
    start = time.monotonic()
    _, well, text = doctor.storage(settings(f"http://127.0.0.1:{free_port()}"))
    assert well is False
    assert "--endpoint-url" in text
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        _, well, text = doctor.storage(settings(f"http://127.0.0.1:{deaf.getsockname()[1]}"))
    assert well is False
    assert "--endpoint-url" in text
    assert time.monotonic() - start < 15


def test_without_s3_nothing_is_asked() -> None:
    """Folders need none."""
    assert doctor.storage(settings(None, None))[1] is None


def test_a_worker_waits_for_its_broker_and_says_so(tmp_path: Path) -> None:
    """In one clear line at first; nothing in its log is a broken line or advice that does not concern us."""
    command = [sys.executable, "-m", "producer.cli", "worker", "inpainting"]
    command += ["--broker", f"redis://127.0.0.1:{free_port()}/0"]
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stderr is not None
        watchdog = threading.Timer(60, worker.kill)
        watchdog.start()
        for line in worker.stderr:
            lines.append(line)
            if "the broker does not answer" in line:
                break
        assert worker.poll() is None
        worker.terminate()
        lines += worker.stderr
        watchdog.cancel()
    log = "".join(lines)
    assert "the worker waits for it and then goes on by itself" in log
    assert "SecurityWarning" not in log
    assert "\\n" not in log
