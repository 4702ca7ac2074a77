"""A job that waits for workers which nobody has started says so, in place of the same numbers for ever."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from made_commands import ROOT, VITRINA
from made_jobs import Workers

from producer.session import Session, create_job
from producer.unserved import Unserved
from shared.keys import STAGES
from shared.presence import announce
from shared.progress import Counts
from shared.recipe import Recipe
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from shared.keys import StageName
    from shared.settings import Settings

ALL = (
    "no worker serves segmentation, inpainting, captioning: start `vitrina worker segmentation --broker …`"
    " and `vitrina worker inpainting --broker …` and `vitrina worker captioning --broker …`"
)
COUNTS = Counts(
    items=9, listed=True, stages=dict.fromkeys(STAGES, 0), done=0, needs_review=0, failed=0, skipped=0, sent=9
)


@pytest.fixture
def workers(settings: Settings) -> Iterator[Workers]:
    """Workers that are started when they are wanted."""
    waiting = Workers(settings)
    yield waiting
    waiting.stop()


def test_whoever_waits_for_workers_is_told_once_and_goes_on_when_they_come(
    tmp_path: Path, settings: Settings, workers: Workers
) -> None:
    """`run`, and `status --watch` of a job that another has fed."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mug.jpg").write_text("a mug")
    ends = [open_storage(str(tmp_path / name), settings) for name in ("photos", "out")]
    job = create_job(*ends, Recipe())
    Session(job, *ends, settings).feed()
    broker = settings.broker.get_secret_value()
    commands = [
        ["run", str(tmp_path / "photos"), "--out", str(tmp_path / "other"), "--broker", broker],
        ["status", job.id, "--watch", "--broker", broker],
    ]
    waiting = [
        subprocess.Popen([*VITRINA, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for command in commands
    ]
    try:
        for process in waiting:
            assert process.stderr
            assert any(line.strip() == ALL for line in process.stderr)  # ends where the process does
            assert process.poll() is None
        for stage in STAGES:
            workers.start(stage, f"{stage}.priority,{stage}")
        for process in waiting:
            told, said = process.communicate(timeout=150)
            assert process.returncode == 0, said
            assert "1 of 1 done" in told + said
            assert "no worker serves" not in said
    finally:
        for process in waiting:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("serving", "through", "named"),
    [
        ([], {}, list(STAGES)),
        (["segmentation"], {}, ["inpainting", "captioning"]),
        (["captioning"], {"segmentation": 9, "inpainting": 9}, []),
        ([], {"segmentation": 9}, ["inpainting", "captioning"]),
    ],
)
def test_the_stages_that_photos_wait_for_and_nobody_serves_are_named(
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    serving: list[StageName],
    through: dict[StageName, int],
    named: list[StageName],
) -> None:
    """Neither one that all photos are through, nor one that has a worker."""
    monkeypatch.setattr("producer.unserved.STILL_SECONDS", 0)
    client.flushdb()
    for stage in serving:
        announce(client, stage, "a-machine", busy=False)
    told: list[str] = []
    unserved = Unserved(client, told.append)
    counts = replace(COUNTS, stages={**COUNTS.stages, **through})
    for _ in range(3):
        unserved.look(counts)
    assert [line.partition(":")[0] for line in told] == ([f"no worker serves {', '.join(named)}"] if named else [])


@pytest.mark.parametrize("counts", [replace(COUNTS, state="paused"), replace(COUNTS, sent=0, items=0)])
def test_a_job_that_waits_for_something_else_wants_no_workers(
    client: Redis, monkeypatch: pytest.MonkeyPatch, counts: Counts
) -> None:
    """For whoever paused it, or for its source to be listed."""
    monkeypatch.setattr("producer.unserved.STILL_SECONDS", 0)
    told: list[str] = []
    unserved = Unserved(client, told.append)
    for _ in range(3):
        unserved.look(counts)
    assert told == []
