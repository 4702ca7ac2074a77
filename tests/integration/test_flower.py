"""`vitrina flower`: with a password, or for this machine alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from producer.embedded import Broker, Flower, Worker, free_port
from producer.flower import flower_options
from shared.broker import make_app
from shared.errors import UsageError
from shared.keys import QUEUES, STAGES
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery
    from made_jobs import Catalogue

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "producer.cli", "flower"]
CODE = """
from producer import flower
from shared.settings import Settings
flower.SAVE_SECONDS = flower.GONE_SECONDS = 1
flower.run_flower(Settings())
"""
HASTY = [sys.executable, "-c", CODE]
PASSWORD = "open-sesame"  # noqa: S105 - the test's own
LOGIN = f"boss:{PASSWORD}"


def asked(url: str, auth: str | None) -> urllib.request.Request:
    headers = {"Authorization": f"Basic {b64encode(auth.encode()).decode()}"} if auth else {}
    return urllib.request.Request(url, headers=headers)


def status(url: str, *, auth: str | None = None) -> int:
    """Return the HTTP status, or 0 while nobody answers."""
    try:
        with urllib.request.urlopen(asked(url, auth), timeout=5) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def until(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something while Flower runs."""
    deadline = time.monotonic() + 60
    while not what():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def own_broker(folder: Path) -> Iterator[str]:
    with Broker(folder / "broker") as broker:
        yield broker.url


@contextmanager
def flower(
    folder: Path, broker: str = "", command: list[str] = COMMAND, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    """Run the command with these VITRINA_FLOWER_* settings, and a broker of its own unless one is given."""
    given = {f"VITRINA_FLOWER_{name.upper()}": value for name, value in settings.items()}
    paths = {"PYTHONPATH": str(ROOT)}
    with (
        nullcontext(broker) if broker else own_broker(folder) as url,
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, env=os.environ | paths | {"VITRINA_BROKER": url} | given, cwd=folder, text=True, stderr=log
        ) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def test_who_has_no_password_sees_nothing(tmp_path: Path) -> None:
    """Nor does its command line show the password, nor its log; what lies in the working folder is not run."""
    (tmp_path / "flowerconfig.py").write_text("basic_auth = []\nopen('was-run', 'w').close()\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}/shop/"
    given = {
        "address": "0.0.0.0",  # noqa: S104 - with a password
        "port": str(port),
        "auth": LOGIN,
        "url_prefix": "/shop/",
        "db": str(tmp_path / "flower.db"),
    }
    with flower(tmp_path, **given) as process:
        until(lambda: bool(status(f"{url}healthcheck")), process)
        assert status(f"{url}workers") == status(f"{url}api/workers") == 401
        assert status(f"{url}workers", auth="boss:guess") == 401
        assert status(f"{url}workers", auth=LOGIN) == 200
        assert status(f"{url}broker", auth=LOGIN) == 200  # else it does not know our transport
        assert PASSWORD not in " ".join(psutil.Process(process.pid).cmdline())
    assert process.returncode == 0
    assert PASSWORD not in (tmp_path / "log").read_text()
    assert not (tmp_path / "was-run").exists()
    assert list(tmp_path.glob("flower.db*"))


def test_the_root_leads_to_where_it_is_shown(tmp_path: Path) -> None:
    """Who leaves the path out of the address, or its last slash, ends there, with or without a password; a wrong path is still one."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with flower(tmp_path, port=str(port), auth=LOGIN, url_prefix="in/shop") as process:
        until(lambda: bool(status(f"{url}/in/shop/healthcheck")), process)
        for path, place in (("", "/"), ("/", "/"), ("/in/shop", "/"), ("/metrics", "/metrics"), ("/healthcheck",) * 2):
            with urllib.request.urlopen(asked(url + path, LOGIN), timeout=5) as page:
                assert page.geturl() == f"{url}/in/shop{place}"
        assert status(url) == status(f"{url}/in/shop") == 401
        assert status(f"{url}/metrics") == 200
        assert status(f"{url}/in", auth=LOGIN) == status(f"{url}/workers", auth=LOGIN) == 404


def test_it_shows_every_queue_whichever_workers_it_knows(tmp_path: Path) -> None:
    """A stage whose worker is late, or gone, is the one that is looked for."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def page(path: str) -> str:
        with urllib.request.urlopen(asked(url + path, LOGIN), timeout=30) as answer:
            return str(answer.read().decode())

    with own_broker(tmp_path) as broker:
        settings = Settings(broker=broker, device="cpu")
        with (
            Worker(tmp_path, STAGES[0], settings, app="workers.testing"),
            flower(tmp_path, broker, port=str(port), auth=LOGIN) as process,
        ):
            until(lambda: bool(status(f"{url}/healthcheck")), process)
            until(lambda: "active_queues" in page("/api/workers?refresh=1"), process)
            assert set(QUEUES) <= set(re.findall(r"[\w.]+", page("/broker")))


def test_what_it_remembers_outlives_a_crash(tmp_path: Path) -> None:
    """It is written to the file now and then, not at an orderly end alone."""
    port = free_port()
    given = {"port": str(port), "auth": LOGIN, "db": str(tmp_path / "history" / "flower")}
    (tmp_path / "history").mkdir()

    def remembered() -> list[str]:
        try:
            with urllib.request.urlopen(asked(f"http://127.0.0.1:{port}/api/tasks", LOGIN), timeout=5) as answer:
                return list(json.load(answer))
        except OSError:
            return []

    with own_broker(tmp_path) as broker:
        app = make_app(Settings(broker=broker))
        with flower(tmp_path, broker, HASTY, **given) as process:

            def seen() -> bool:
                with app.events.default_dispatcher(hostname="segmentation@here") as events:
                    events.send("task-received", uuid="photo-1", name=STAGES[0], args="a.jpg", kwargs="{}")
                return remembered() == ["photo-1"]

            until(seen, process)
            before = time.time()
            until(lambda: any(file.stat().st_mtime > before for file in tmp_path.glob("history/*")), process)
            process.kill()
            process.wait()
        with flower(tmp_path, broker, **given) as process:
            until(lambda: remembered() == ["photo-1"], process)


def test_a_worker_that_has_ended_is_not_shown_for_ever(tmp_path: Path) -> None:
    """Where workers come and go, those that are there must not drown among those that were."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/workers?json=1"
    with own_broker(tmp_path) as broker, flower(tmp_path, broker, HASTY, port=str(port)) as process:
        app = make_app(Settings(broker=broker))

        def send(event: str) -> None:
            with app.events.default_dispatcher(hostname="segmentation@gone") as events:
                events.send(event, freq=2.0)

        def shown() -> list[str]:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return [worker["hostname"] for worker in json.load(answer)["data"]]

        def beaten() -> bool:
            send("worker-heartbeat")
            return status(url) == 200 and shown() == ["segmentation@gone"]

        until(beaten, process)
        send("worker-offline")
        until(lambda: not shown(), process)


def test_its_log_is_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own lines as well: an object each, for machines, or none below the level."""
    monkeypatch.setenv("VITRINA_LOG_FORMAT", "json")
    for level in ("INFO", "ERROR"):
        monkeypatch.setenv("VITRINA_LOG_LEVEL", level)
        port = free_port()
        with flower(tmp_path, port=str(port)) as process:
            until(lambda port=port: bool(status(f"http://127.0.0.1:{port}/healthcheck")), process)  # type: ignore[misc]
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert all({"time", "level", "message"} <= set(line) for line in lines)
        assert any("Visit me at" in line["message"] for line in lines) == (level == "INFO")


@pytest.mark.parametrize("address", ["0.0.0.0", "", "::", "192.0.2.1", "flower.shop.example"])  # noqa: S104 - refused
def test_without_a_password_it_serves_no_address_but_loopback(address: str) -> None:
    """A name is not trusted to mean this machine; an empty password is none."""
    for auth in (None, ""):
        with pytest.raises(UsageError, match="set VITRINA_FLOWER_AUTH=user:password"):
            flower_options(Settings(flower_address=address, flower_auth=auth))
    assert f"--address={address}" in flower_options(Settings(flower_address=address, flower_auth="a:b"))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_password(address: str) -> None:
    """As the embedded stack's."""
    assert f"--address={address}" in flower_options(Settings(flower_address=address))


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    """Without the secret that was wrong."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for given, words in (
            ({"VITRINA_FLOWER_ADDRESS": "0.0.0.0"}, "nobody is asked for a password"),  # noqa: S104 - refused
            ({"VITRINA_FLOWER_AUTH": PASSWORD}, "must be user:password"),
            ({"VITRINA_FLOWER_PORT": port}, "choose another VITRINA_FLOWER_PORT"),
        ):
            done = subprocess.run(
                COMMAND, env=os.environ | given, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 2
            assert words in done.stderr
            assert len(done.stderr.splitlines()) == 1
            assert PASSWORD not in done.stderr


def test_the_embedded_one_stays_on_loopback(tmp_path: Path) -> None:
    """Whatever the settings say of another one."""
    with Broker(tmp_path / "broker") as broker:
        settings = Settings(broker=broker.url, flower_address="0.0.0.0", flower_port=free_port())  # noqa: S104 - not used
        with Flower(tmp_path, settings) as served:
            listening = {entry.laddr.ip for entry in psutil.Process(served.pid).net_connections() if not entry.raddr}
            assert listening == {"127.0.0.1"}


def test_events_name_the_photo_at_every_stage(catalogue: Catalogue, app: Celery) -> None:
    """What Flower shows beside the stage is the same from the first to the last."""
    jobs: list[str] = []
    said: dict[str, str] = {}
    with app.connection_for_read() as connection:

        def begin(*_: object, **__: object) -> None:
            catalogue.add("shoes/a.jpg", "photo")
            jobs.append(catalogue.submit().id)

        def note(event: dict[str, str]) -> None:
            said[event["name"]] = event["args"]
            receiver.should_stop = len(said) == len(STAGES)

        receiver = app.events.Receiver(connection, handlers={"task-received": note})
        receiver.on_consume_ready = begin
        receiver.capture(timeout=60, wakeup=False)
    assert said == dict.fromkeys(STAGES, f"shoes/a.jpg ({jobs[0]} #0)")
