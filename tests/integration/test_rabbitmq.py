"""RabbitMQ for the queues, Valkey for the progress: the other broker that is promised. Needs Debian's `rabbitmq-server`, and says so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_jobs import Catalogue, Workers
from pydantic import SecretStr

from producer.embedded import Broker, free_port
from producer.status import Surroundings
from shared.broker import make_app
from shared.connection import connect
from shared.errors import UsageError
from shared.keys import STAGES
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
needs_rabbitmq = pytest.mark.skipif(
    not SERVER.exists() or shutil.which("epmd") is None, reason="Debian's package rabbitmq-server is not installed"
)


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ server on free loopback ports, with a folder and a port mapper of its own."""
    folder = tmp_path_factory.mktemp("rabbit")
    port, mapper = free_port(), free_port()
    plugins = folder / "enabled_plugins"
    plugins.write_text("[].")
    env = os.environ | {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"vitrina{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
    }
    server = subprocess.Popen(
        [SERVER], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"amqp://guest:guest@127.0.0.1:{port}//"
    app = make_app(Settings(broker=SecretStr(address), progress=SecretStr("redis://127.0.0.1:1/0")))
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=60, interval_start=0.5, interval_step=0, interval_max=0.5)
        yield address
    finally:
        app.close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        subprocess.run(["epmd", "-port", str(mapper), "-kill"], check=False, capture_output=True)


@pytest.fixture
def settings(rabbit: str, tmp_path: Path) -> Iterator[Settings]:
    with Broker(tmp_path / "progress") as progress:
        yield Settings(
            broker=SecretStr(rabbit), progress=SecretStr(progress.url), retry_base=0.05, window=200, look_every=0.5
        )


@pytest.fixture
def workers(settings: Settings) -> Iterator[Workers]:
    started = Workers(settings)
    for stage in STAGES:
        started.start(stage, f"{stage}.priority,{stage}")
    yield started
    started.stop()


@needs_rabbitmq
def test_a_job_runs_through_quorum_queues_and_survives_a_killed_worker(
    tmp_path: Path, settings: Settings, workers: Workers
) -> None:
    """Every photo ends once, in outputs or as a failure; retries and the worker's messages go their way in RabbitMQ."""
    app = make_app(settings)
    with connect(settings) as client:
        catalogue = Catalogue(tmp_path, settings, app, client)
        for number in range(60):
            catalogue.add(f"{number}.jpg", f"slow:0.{number % 9 + 1}")
        catalogue.add("bad.jpg", "bad")
        catalogue.add("hungry.jpg", "memory")  # tried again, and again
        workers.start("victim", ",".join(STAGES))
        job = catalogue.submit()
        while not workers.works("victim", app):
            assert not catalogue.progress(job).counts().finished
        victim = workers.processes.pop("victim")
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        summary = catalogue.follow(job)
        assert (summary.items, summary.done, summary.failed) == (62, 60, 2)
        around = Surroundings.of(client, catalogue.progress(job), settings)
        assert around.queues == {}
        assert "waiting" not in around.line()
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue(app.amqp.queues["segmentation"], no_ack=True)
            assert queue.qsize() == 0
            queue.close()
    app.close()


def test_a_broker_without_a_place_for_progress_is_told() -> None:
    """What to set is said before anything is tried."""
    with pytest.raises(UsageError, match="VITRINA_PROGRESS"):
        connect(Settings(broker=SecretStr("amqp://guest:guest@127.0.0.1//")))
