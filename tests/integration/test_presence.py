"""What an autoscaler can rely on: a stage's busy workers are counted while they are busy, and none for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from made_jobs import Catalogue, Workers, wait_until

from producer.embedded import Broker
from shared import presence
from shared.broker import make_app
from shared.connection import connect
from shared.keys import STAGES, StageName
from shared.presence import announce, busy_key, leave, present
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

STAGE: StageName = "segmentation"
COUNT = "return redis.call(redis.call('TYPE', KEYS[1]).ok == 'zset' and 'ZCARD' or 'LLEN', KEYS[1])"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Settings]:
    """A broker of the test's own: nobody else is busy there."""
    with Broker(tmp_path / "broker") as broker:
        yield Settings(broker=broker.url, visibility_timeout=4)


def busy(client: Redis, stage: StageName = STAGE) -> int:
    """Count as KEDA's Redis scaler does: by the kind of the key, in one script."""
    return int(client.eval(COUNT, 1, busy_key(stage)))


@pytest.mark.parametrize("end", ["done", "told to stop", "killed"])
def test_a_worker_is_counted_while_it_has_work_and_not_for_ever(tmp_path: Path, alone: Settings, end: str) -> None:
    """It is counted under its stage from a few seconds after its first photo; no more when it is done, on its way out, or dead without a word."""
    app, own = make_app(alone), Workers(alone)
    with connect(alone) as client:
        catalogue = Catalogue(tmp_path, alone, app, client)
        catalogue.add("a.jpg", "slow:8" if end == "done" else "slow:40")
        try:
            own.start("own", STAGE)
            process = own.processes["own"]
            wait_until(lambda: present(client) or process.poll() is not None)
            assert process.poll() is None, "it did not even start"
            assert busy(client) == 0
            catalogue.submit()
            wait_until(lambda: busy(client) == 1)
            assert [busy(client, stage) for stage in STAGES] == [1, 0, 0]
            if end == "killed":
                process.kill()
            elif end == "told to stop":
                process.terminate()
            wait_until(lambda: busy(client) == 0)
            if end != "killed":
                assert process.poll() is None, "it was still there when it was no longer counted"
        finally:
            own.processes["own"].kill()
            own.stop()
            app.close()


def test_the_dead_are_dropped_by_those_who_live(alone: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle ones as well: nobody else is asked to look after them."""
    monkeypatch.setattr(presence, "GONE_SECONDS", 3)
    with connect(alone) as client:
        announce(client, STAGE, "dead", busy=True)

        def others_show_themselves() -> bool:
            announce(client, STAGE, "busy", busy=True)
            announce(client, STAGE, "idle", busy=False)
            return busy(client) == 1

        assert not others_show_themselves()
        wait_until(others_show_themselves)
        assert client.zrange(busy_key(STAGE), 0, -1) == [f"{STAGE}@busy".encode()]


def test_no_machines_clock_counts(alone: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose clock is an hour off is there and busy like any other, also for one whose clock is right."""
    with connect(alone) as client:
        monkeypatch.setattr("time.time", lambda: 1.0)
        announce(client, STAGE, "late", busy=True)
        monkeypatch.undo()
        announce(client, STAGE, "right", busy=True)
        assert busy(client) == 2
        assert present(client) == [f"{STAGE}@late", f"{STAGE}@right"]
        leave(client, STAGE, "late")
        assert busy(client) == 1
        assert present(client) == [f"{STAGE}@right"]


def test_a_full_broker_still_counts_who_is_busy(alone: Settings) -> None:
    """Else an autoscaler would take away the workers that could empty it, and `vitrina status` tell that there are none."""
    with connect(alone) as client:
        client.config_set("maxmemory", "1")
        announce(client, STAGE, "own", busy=True)
        assert busy(client) == 1
        assert present(client) == [f"{STAGE}@own"]
