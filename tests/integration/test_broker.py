"""What the Celery application sets, in a worker that is started with nothing but its queues."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from made_jobs import ROOT, Catalogue

from producer.embedded import Broker
from producer.launch import env_for
from shared.broker import make_app
from shared.connection import connect
from shared.keys import STAGES
from shared.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {"atomic": "shared.transport", "stock": "kombu.transport.redis"}


@pytest.mark.parametrize("transport", ["atomic", "stock"])
def test_a_job_runs_through_either_transport_on_threads(tmp_path: Path, transport: str) -> None:
    """As many as the settings say; a worker of kombu's own finds nothing that it cannot read."""
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "workers.testing",
        "worker",
        "-Q",
        ",".join(STAGES),
        "-n",
        "w@test",
    ]
    with Broker(tmp_path / "broker") as broker:
        settings = Settings(broker=broker.url, transport=transport, threads=3)
        app = make_app(settings)
        with connect(settings) as client, app.connection_for_read() as connection:
            assert type(connection.transport).__module__ == MODULES[transport]
            catalogue = Catalogue(tmp_path, settings, app, client)
            for number in range(20):
                catalogue.add(f"{number}.jpg", "photo")
            job = catalogue.submit()
            worker = subprocess.Popen(command, cwd=ROOT, env=os.environ | env_for(settings), stderr=subprocess.DEVNULL)
            try:
                assert catalogue.follow(job).done == 20
                catalogue.settle()
                pool = app.control.inspect(["w@test"], timeout=30).stats()["w@test"]["pool"]
            finally:
                worker.terminate()
                worker.wait(60)
        app.close()
    assert (pool["implementation"], pool["max-concurrency"]) == ("celery.concurrency.thread:TaskPool", 3)
