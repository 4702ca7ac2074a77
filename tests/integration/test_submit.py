"""The command submit, on a real broker: what it says and when, and what it leaves to others."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from made_jobs import Catalogue, followed, wait_until
from typer.testing import CliRunner

from producer.cli import app as cli
from producer.session import Session
from shared.errors import StorageError, UsageError
from shared.jobs import read_items

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def submit(catalogue: Catalogue, *options: str, stdin: str | bytes | None = None) -> Result:
    broker = catalogue.settings.broker.get_secret_value()
    command = ["submit", str(catalogue.photos), "--out", str(catalogue.out), "--broker", broker, *options]
    return CliRunner().invoke(cli, command, input=stdin, standalone_mode=False)


def jobs(catalogue: Catalogue) -> list[str]:
    return [path.name for path in (catalogue.out / "jobs").iterdir()] if (catalogue.out / "jobs").exists() else []


def test_a_jobs_id_is_told_before_it_is_fed(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is interrupted needs it to go on; on stdout it is the last line, for programs."""
    catalogue.add("a.jpg", "photo")
    done = submit(catalogue)
    job = done.stdout.splitlines()[-1]
    assert done.stderr.splitlines()[0] == f"job {job}: {catalogue.photos} → {catalogue.out}"
    followed(Session.reopen(job, None, catalogue.settings))

    def fail(*_: object) -> None:
        raise StorageError("the storage went away")

    monkeypatch.setattr(Session, "feed", fail)
    failed = submit(catalogue)
    assert isinstance(failed.exception, StorageError)
    (other,) = set(jobs(catalogue)) - {job}
    assert f"job {other}: " in failed.stderr
    assert failed.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "photos holds no photos: check the address"), (("--include", "*.png"), "--include asks for no photo of")],
)
def test_a_job_of_nothing_says_so(catalogue: Catalogue, options: tuple[str, ...], words: str) -> None:
    """With status 1, as run does: a script must not take it for a catalogue that was made."""
    if options:
        catalogue.add("a.jpg", "photo")
    done = submit(catalogue, *options)
    assert done.return_value == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("rows", "words"),
    [("a.jpg\nhttps://shop.example/b.jpg\n", "standard input: line 2: .* Nothing was submitted"), ("", "has no rows")],
)
def test_rows_that_are_wrong_make_no_job(catalogue: Catalogue, rows: str, words: str) -> None:
    """Those of standard input are checked to the last, too, before there is anything."""
    catalogue.add("a.jpg", "photo")
    done = submit(catalogue, "--manifest", "-", stdin=rows)
    assert isinstance(done.exception, UsageError)
    with pytest.raises(UsageError, match=words):
        raise done.exception
    assert jobs(catalogue) == []


def test_rows_of_standard_input_can_be_confirmed_and_left_to_another_process(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """Which reads them from the job's records; the job is known, and can be followed, from the moment that its id is told."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        catalogue.add(name, "photo")
    rows = b'\xef\xbb\xbf{"key": "a.jpg", "title": "Cup"}\nb.jpg\nb.jpg\n'
    options = ("--manifest", "-", "--detach", "--json")
    refused = submit(catalogue, *options, "--confirm-over", "1", stdin=rows)
    assert "more than 1 photos" in str(refused.exception)
    assert jobs(catalogue) == []
    command = [sys.executable, "-m", "producer.cli", "submit", str(catalogue.photos), "--out", str(catalogue.out)]
    command += ["--broker", catalogue.settings.broker.get_secret_value(), "--confirm-over", "2", *options]
    done = subprocess.run(command, input=rows, capture_output=True, check=True, cwd=tmp_path)
    told = json.loads(done.stdout)
    session = Session.reopen(told["job"], None, catalogue.settings)
    assert told["items"] is None
    assert b"standard input: 3 rows" in done.stderr
    wait_until(lambda: session.progress.counts().listed)
    assert followed(session) == (2, 2, 0)
    items = list(read_items(session.destination, session.job.id))
    assert [(item.key, dict(item.fields)) for item in items] == [("a.jpg", {"title": "Cup"}), ("b.jpg", {})]
