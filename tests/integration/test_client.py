"""The Python API: what docs/python.md shows works as it stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from made_jobs import ROOT, Catalogue

from producer import Client, Selection
from producer.submit import Submitter
from shared.errors import BrokerError, JobNotFoundError, RecipeError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_examples_of_the_guide_run(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block in turn, as in a notebook, on the real broker and instant models."""
    for name, text in (("a.jpg", "photo"), ("b.jpg", "doubt:captioning"), ("c.jpg", "bad")):
        catalogue.add(name, text)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    broker = catalogue.settings.broker.get_secret_value()
    names: dict[str, object] = {"BROKER": broker, "PHOTOS": str(catalogue.photos), "CATALOGUE": str(catalogue.out)}
    said = []
    for block in blocks[:-1]:
        exec(block, names)  # noqa: S102 - our own guide
        said.append(capsys.readouterr().out)
    assert len(blocks) == 4
    assert said[0] == "2 of 3, 1 to review, 1 failed\n"
    assert said[1].splitlines()[0].startswith("a.jpg a.jpg a.jpg/image-")
    assert said[1].splitlines()[1:] == [
        "b.jpg needs_review ('asked_for',)",
        "c.jpg failed ('unreadable',)",
    ]
    with pytest.raises(RuntimeError, match="1 of 3 failed"):
        exec(blocks[-1], names)  # noqa: S102 - our own guide
    (catalogue.photos / "c.jpg").unlink()
    exec(blocks[-1], names)  # noqa: S102 - our own guide
    assert capsys.readouterr().out == "2\n"


def test_a_wait_that_is_too_long_leaves_the_job_alone(catalogue: Catalogue) -> None:
    """The job goes on and can be waited for again, also by another client."""
    for number in range(20):
        catalogue.add(f"{number}.jpg", "slow:0.1")
    client = Client(catalogue.settings.broker.get_secret_value())
    job = client.submit(str(catalogue.photos), str(catalogue.out), block=False)
    with pytest.raises(TimeoutError, match="goes on"):
        job.wait(timeout=0.3)
    assert job.id in client.jobs()
    assert Client(catalogue.settings.broker.get_secret_value()).job(job.id).wait(timeout=60).done == 20
    assert job.status()["finished"]


def test_whatever_ends_the_feeding_thread_is_raised_where_it_is_waited_for(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what nobody expected: a wait for what no longer comes would have no end."""
    catalogue.add("a.jpg", "photo")

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Submitter, "feed", fail)
    client = Client(catalogue.settings.broker.get_secret_value())
    job = client.submit(str(catalogue.photos), str(catalogue.out), block=False)
    assert client.job(job.id).id == job.id  # it is known at once
    with pytest.raises(RuntimeError, match="a bug"):
        job.wait(timeout=60)


def test_what_a_manifest_says_in_vain_is_warned_of(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command line tells it; its path is relative to where the caller stands, and the job needs it no more."""
    catalogue.add("a.jpg", "photo")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.csv").write_text("key,price\na.jpg,3\na.jpg,4\n")
    client = Client(catalogue.settings.broker.get_secret_value())
    with pytest.warns(UserWarning, match="items.csv") as told:
        job = client.submit(str(catalogue.photos), str(catalogue.out), selection=Selection(manifest="items.csv"))
    assert [str(warning.message) for warning in told] == [
        "items.csv: columns that are not used: price",
        "items.csv: 1 rows name a photo again; each is taken once",
    ]
    assert job.wait(timeout=60).done == 1


def test_what_is_wrong_is_told_before_anything_is_submitted(catalogue: Catalogue, tmp_path: Path) -> None:
    """The same errors as on the command line."""
    client = Client(catalogue.settings.broker.get_secret_value())
    photos, out = str(catalogue.photos), str(catalogue.out)
    with pytest.raises(RecipeError):
        client.submit(photos, out, recipe={"background": {"model": "lava"}})
    with pytest.raises(UsageError, match="no such folder"):
        client.submit(str(tmp_path / "none"), out)
    with pytest.raises(JobNotFoundError):
        client.job("20260101-000000-abcdef")
    with pytest.raises(BrokerError, match="does not answer"):
        Client("redis://127.0.0.1:1/0").submit(photos, out)
    with pytest.raises(UsageError, match="VITRINA_WINDOW"):
        Client(window=0)
    assert not (catalogue.out / "jobs").exists()
