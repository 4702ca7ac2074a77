"""Broker and storage over TLS, with a password and an authority of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kombu.exceptions import OperationalError
from made_jobs import Workers
from made_tls import Authority, tls_proxy

from producer.embedded import Broker, S3Server
from shared.broker import make_app
from shared.connection import broker_errors, connect
from shared.errors import BrokerError
from shared.keys import STAGES
from shared.settings import Settings
from shared.storage import open_storage
from shared.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "open-sesame"  # noqa: S105 - the test's own
AWS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "of-the-shop", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Secured:
    """Servers behind TLS."""

    broker_port: int
    s3_port: int
    authority: Authority

    def broker(self, *, host: str = "localhost", password: str = PASSWORD, trusted: bool = True) -> str:
        trust = f"?ssl_ca_certs={self.authority.path}" if trusted else ""
        return f"rediss://:{password}@{host}:{self.broker_port}/0{trust}"

    def environment(self, broker: str, *, trusted: bool = True) -> dict[str, str]:
        trust = {"AWS_CA_BUNDLE": str(self.authority.path)} if trusted else {}
        return AWS | trust | {"VITRINA_BROKER": broker, "VITRINA_ENDPOINT_URL": f"https://localhost:{self.s3_port}"}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    with Broker(folder / "broker") as broker, S3Server(folder) as s3:
        with connect(Settings(broker=broker.url)) as client:
            client.config_set("requirepass", PASSWORD)
        plain = int(broker.url.rpartition(":")[2].partition("/")[0])
        with (
            tls_proxy(plain, authority) as broker_port,
            tls_proxy(int(s3.url.rpartition(":")[2]), authority) as s3_port,
        ):
            yield Secured(broker_port, s3_port, authority)


def vitrina(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in an environment without proxies."""
    return subprocess.run(
        [sys.executable, "-m", "producer.cli", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_job_runs_over_tls_alone(tmp_path: Path, secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues, progress, photos and catalogue; no secret in what is said or recorded."""
    environment = secured.environment(secured.broker())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    S3Storage.from_settings("s3://shop", settings).ensure_bucket()
    photos = open_storage("s3://shop/photos", settings)
    for name in ("a.jpg", "b.jpg"):
        photos.put(name, b"photo")
    own = Workers(settings)
    try:
        own.start("all", ",".join(STAGES))
        done = vitrina(
            tmp_path, environment, "run", "s3://shop/photos", "--out", "s3://shop/out", "--report", "r.html", "--json"
        )
    finally:
        own.stop()
    assert json.loads(done.stdout.splitlines()[-1])["done"] == 2, done.stderr
    stored = b"".join(
        open_storage("s3://shop", settings).get(stat.key).data for stat in open_storage("s3://shop", settings).list()
    )
    told = done.stdout + done.stderr + (tmp_path / "r.html").read_text() + stored.decode(errors="replace")
    assert PASSWORD not in told
    assert AWS["AWS_SECRET_ACCESS_KEY"] not in told


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ({"trusted": False}, "certificate"),
        ({"host": "127.0.0.1"}, "certificate"),
        ({"password": "guess"}, "refuses our password"),
    ],
    ids=["an authority that nobody knows", "a name that is not the certificate's", "a wrong password"],
)
def test_a_broker_that_is_not_the_right_one_is_refused(secured: Secured, address: dict[str, Any], words: str) -> None:
    """With the reason, and without the password."""
    settings = Settings(broker=secured.broker(**address))
    with connect(settings, quick=True) as client, pytest.raises(BrokerError) as caught, broker_errors():
        client.ping()
    assert words in str(caught.value).lower()
    assert PASSWORD not in str(caught.value)
    assert "guess" not in str(caught.value)


def test_the_queues_check_the_certificate_too(secured: Secured) -> None:
    """They are another connection than the progress, made by another library."""
    wrong: list[dict[str, Any]] = [{"trusted": False}, {"host": "127.0.0.1"}]
    for address in wrong:
        app = make_app(Settings(broker=secured.broker(**address)))
        with app.connection_for_write() as connection, pytest.raises(OperationalError, match=r"(?i)certificate"):
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=5)
        app.close()
    app = make_app(Settings(broker=secured.broker()))
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=5)
    app.close()


def test_a_storage_that_nobody_vouches_for_is_refused(tmp_path: Path, secured: Secured) -> None:
    """In one line."""
    environment = secured.environment(secured.broker(), trusted=False) | {"VITRINA_S3_ATTEMPTS": "1"}
    done = vitrina(tmp_path, environment, "submit", "s3://shop/photos", "--out", "s3://shop/out")
    assert done.returncode == 1
    assert "certificate" in done.stderr.lower()
    assert "Traceback" not in done.stderr
