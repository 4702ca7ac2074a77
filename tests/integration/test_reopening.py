"""A job that is opened again by its records: what may be done to it when its broker was not named, and when its records have gone."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from producer import repairs
from producer.cli import app as vitrina
from producer.cli.status import look_around
from producer.embedded import Broker
from producer.pace import remember
from producer.session import Session, create_job
from producer.submit import Submitter
from shared.broker import make_app
from shared.errors import BrokerError, JobNotFoundError, UsageError
from shared.jobs import PAGE, list_jobs, save_summary
from shared.keys import STAGES
from shared.messages import Photo
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = "redis://127.0.0.1:9/0"
"""Where no broker answers."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


def unnamed(address: str) -> Settings:
    """Return the settings of a person who named no broker, where the usual one is at this address."""
    return Settings.model_construct(set(), broker=SecretStr(address))


def begun(folder: Path, settings: Settings) -> Session:
    """Make a job of one photo that is queued, and that no worker takes."""
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"x")
    source, destination = open_storage(str(folder / "photos"), settings), open_storage(str(folder / "out"), settings)
    session = Session(create_job(source, destination, Recipe()), source, destination, settings)
    app = make_app(settings)
    session.progress.begin(session.job.destination)
    Submitter(app, session.progress, session.job, destination, window=5).feed([Photo("a.jpg", "etag")])
    app.close()
    return session


def test_the_usual_broker_is_asked_before_a_job_is_changed(tmp_path: Path, broker: Broker) -> None:
    """Naming only the records does not make a running job one that has ended."""
    made = begun(tmp_path, Settings(broker=SecretStr(broker.url)))
    session = Session.reopen(made.job.id, made.destination.url, unnamed(broker.url))
    with pytest.raises(UsageError, match=r"going on: `vitrina cancel"):
        repairs.purge(session)
    assert repairs.pause(session) == 1
    assert repairs.resume(session)
    repairs.cancel(session)
    assert made.progress.counts().state == "cancelled"


def test_where_no_broker_answers_nothing_is_changed(tmp_path: Path, broker: Broker) -> None:
    """A job is told and reported of; until it is known to have ended, it stays as it is."""
    made = begun(tmp_path, Settings(broker=SecretStr(broker.url)))
    session = Session.reopen(made.job.id, made.destination.url, unnamed(NOBODY))
    assert not session.progress.counts().known
    for change in (repairs.cancel, repairs.retry):
        with pytest.raises(BrokerError, match="--broker"):
            change(session)
    with pytest.raises(BrokerError, match="--broker"):
        repairs.rerun(session, "inpainting", Recipe())
    assert list(list_jobs(made.destination)) == [made.job.id]
    with pytest.raises(UsageError, match="name its broker with --broker"):
        repairs.purge(session)
    save_summary(made.destination, made.job.id, {})
    assert repairs.purge(session) == 0
    assert list(list_jobs(made.destination)) == []


def test_a_job_whose_records_were_deleted_hides_no_other(
    tmp_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is listed as such, and can be purged from the broker."""
    settings = Settings(broker=SecretStr(broker.url))
    for name in ("gone", "kept"):
        (tmp_path / name).mkdir()
    gone, kept = (begun(tmp_path / name, settings) for name in ("gone", "kept"))
    for stat in list(gone.destination.list(f"jobs/{gone.job.id}/")):
        gone.destination.delete(stat.key)
    given = ["--broker", broker.url]
    assert vitrina(["jobs", "--json", *given], standalone_mode=False) == 0
    rows = {row["job"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows[kept.job.id]["source"] == kept.source.url
    assert f"vitrina purge {gone.job.id}" in rows[gone.job.id]["source"]
    assert vitrina(["purge", gone.job.id, *given], standalone_mode=False) == 0
    assert not gone.progress.counts().known
    assert kept.progress.counts().known
    with pytest.raises(JobNotFoundError):
        vitrina(["purge", gone.job.id, *given], standalone_mode=False)


def test_a_log_that_cannot_be_written_is_told_before_there_is_a_job(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that a person stands in may be anything."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir("/proc")
    given = [str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--broker", broker.url]
    with pytest.raises(UsageError, match="--detach writes its log into the working folder"):
        vitrina(["submit", "--detach", *given], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_the_ids_of_jobs_can_be_copied_from_any_terminal(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However narrow; what is read by a program has a line a job."""
    folder = tmp_path / ("a folder with a long name " * 8)
    folder.mkdir()
    made = begun(folder, Settings(broker=SecretStr(broker.url)))
    given = ["--out", made.destination.url, "--broker", broker.url]
    assert vitrina(["jobs", *given], standalone_mode=False) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if made.job.id in line)
    assert line.rstrip().endswith(made.source.url)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "60")
    assert vitrina(["jobs", *given], standalone_mode=False) == 0
    assert made.job.id in capsys.readouterr().out


def test_every_command_calls_a_jobs_state_the_same(
    tmp_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """From running over paused and cancelled; what has no future has no time of arrival."""
    made = begun(tmp_path, Settings(broker=SecretStr(broker.url)))
    given = ["--broker", broker.url, "--json"]

    def told() -> set[str]:
        vitrina(["status", made.job.id, *given], standalone_mode=False)
        status = json.loads(capsys.readouterr().out)
        assert status["eta_seconds"] is None
        vitrina(["jobs", *given], standalone_mode=False)
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        return {status["state"], *(row["state"] for row in rows if row["job"] == made.job.id)}

    assert told() == {"running"}
    repairs.pause(made)
    assert told() == {"paused"}
    assert repairs.resume(made)  # all of it is queued
    assert repairs.cancel(made)
    assert told() == {"cancelled"}
    made.progress.set_state("running")
    for stage in STAGES:
        made.progress.finish(stage, 0, ran=True, review=True)
    assert told() == {"finished"}
    vitrina(["status", made.job.id, "--broker", broker.url], standalone_mode=False)
    assert capsys.readouterr().out.startswith("finished: 1 of 1 done (1 to review), 0 failed")


def test_a_job_whose_producer_died_is_told_apart(
    tmp_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command, with what goes on; while a producer is there, and once all is listed, it runs."""

    class DiedError(Exception):
        """The end of a producer amid its listing."""

    def listing() -> Iterator[Photo]:
        yield from (Photo(f"{number:04}.jpg", "etag") for number in range(PAGE + 1))
        assert told() == {"running"}
        raise DiedError

    def told() -> set[str]:
        vitrina(["status", session.job.id, *given, "--json"], standalone_mode=False)
        status = json.loads(capsys.readouterr().out)
        vitrina(["jobs", *given, "--json"], standalone_mode=False)
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        return {status["state"], *(row["state"] for row in rows if row["job"] == session.job.id)}

    settings = Settings(broker=SecretStr(broker.url), window=PAGE + 10)
    given = ["--broker", broker.url]
    (tmp_path / "photos").mkdir()
    source, destination = (open_storage(str(tmp_path / name), settings) for name in ("photos", "out"))
    session = Session(create_job(source, destination, Recipe()), source, destination, settings)
    with pytest.raises(DiedError), session.producing() as submitter:
        submitter.feed(listing())
    assert told() == {"unfed"}
    vitrina(["status", session.job.id, *given], standalone_mode=False)
    assert f"nobody feeds it: go on with `vitrina submit --resume {session.job.id}`" in capsys.readouterr().out
    vitrina(["jobs", *given], standalone_mode=False)
    assert "`vitrina submit --resume JOB` goes on" in capsys.readouterr().err
    assert f"--resume {session.job.id}`" in look_around(session), "as `status --watch` shows it"
    session.progress.listed(PAGE + 1, complete=True)  # what is listed, a keeper queues
    assert told() == {"running"}
    assert "nobody feeds it" not in look_around(session)


def test_status_tells_a_rate_once_somebody_looks_after_a_job(
    tmp_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the last minute, from the looks of a keeper or of whoever follows; a pause ends it."""
    made = begun(tmp_path, Settings(broker=SecretStr(broker.url)))
    made.progress.listed(100, complete=True)

    def status() -> dict[str, Any]:
        vitrina(["status", made.job.id, "--broker", broker.url, "--json"], standalone_mode=False)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert (status()["rates"], status()["eta_seconds"]) == ({}, None)
    remember(made.client, made.job.id, made.progress.counts())
    for index in range(20):
        for stage in STAGES:
            made.progress.finish(stage, index, ran=True, review=False)
    start = time.monotonic()
    while not (found := status())["rates"]:
        assert time.monotonic() - start < 60, "two looks are a second apart"
    assert 0 < found["rates"]["captioning"] <= 20
    assert found["eta_seconds"] == pytest.approx(80 / found["rates"]["captioning"], abs=1)
    vitrina(["status", made.job.id, "--broker", broker.url], standalone_mode=False)
    assert re.search(r"captioning 20 \([0-9.]+ images/s\); ETA 0:", capsys.readouterr().out)
    made.progress.set_state("paused")
    assert (status()["rates"], status()["eta_seconds"]) == ({}, None)
