"""What a job hands over: tables of all items, and the merchant's feed with our pictures and texts."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from producer.cli import app as command_line
from producer.follow import Summary
from producer.repairs import retry
from producer.results import Result, Results, forget_results
from producer.sealing import seal
from producer.selection import Selection
from producer.session import Session, create_job
from shared.errors import StorageRefusedError, UsageError, VitrinaError
from shared.progress import NoProgress, Progress
from shared.recipe import Recipe
from shared.storage import open_storage
from shared.storage.local import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path

    from made_jobs import Catalogue

G = "{http://base.google.com/ns/1.0}"


@pytest.fixture
def made(catalogue: Catalogue, tmp_path: Path) -> Session:
    """A finished job of three items, one to review and one failed, with a manifest that tries to be evil."""
    for name, text in (("a b.jpg", "photo"), ("unsure.jpg", "doubt:captioning"), ("cut.jpg", "bad")):
        catalogue.add(name, text)
    table = tmp_path / "items.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "id", "title"])
        writer.writerow(["a b.jpg", "17", "=cmd()|<script>alert(1)</script>"])
        writer.writerow(["unsure.jpg", "18", "Cup"])
        writer.writerow(["cut.jpg", "19", ""])
    source, destination = (open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out))
    session = Session(
        create_job(source, destination, Recipe(), Selection(manifest=str(table))),
        source,
        destination,
        catalogue.settings,
    )
    session.feed()
    session.follow()
    return session


def export(session: Session, *arguments: str) -> bytes:
    """Run the command on a job and return its stdout. Raises what it raised."""
    given = ["export", session.job.id, "--broker", session.settings.broker.get_secret_value(), *arguments]
    done = CliRunner().invoke(command_line, given)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout_bytes


def test_results_are_the_same_from_records_and_from_kept_pages(made: Session) -> None:
    """Read again they come from one file a thousand, with and without a broker."""
    gathered = list(Results(made.job, made.destination, made.progress))
    forget_results(made.destination, made.job.id, [0])
    first = list(Results(made.job, made.destination, made.progress))
    assert first == gathered
    assert [(r.key, r.outcome, r.reasons) for r in first] == [
        ("a b.jpg", "done", ()),
        ("unsure.jpg", "needs_review", ("asked_for",)),
        ("cut.jpg", "failed", ("unreadable",)),
    ]
    assert first[0].captions == {"en": "a b.jpg", "ru": "a b.jpg"}
    assert first[0].fields["id"] == "17"
    assert set(first[0].outputs) == {"cutout", "mask", "image", "caption"}
    made.destination.delete(first[0].outputs["caption"])
    assert list(Results(made.job, made.destination, made.progress)) == first
    assert list(Results(made.job, made.destination, NoProgress())) == first
    assert [Result.from_dict(result.to_dict()) for result in first] == first


def test_without_a_broker_results_come_from_storage(made: Session) -> None:
    """Records, and the failures that were written at the job's end."""
    seal(made.destination, made.progress, Summary.of(made.job.id, made.progress.counts(), 1.0))
    outcomes = [result.outcome for result in Results(made.job, made.destination, NoProgress())]
    assert outcomes == ["done", "needs_review", "failed"]


def test_an_unfinished_page_is_not_kept(catalogue: Catalogue) -> None:
    """What is not finished is told as such, and read again the next time."""
    catalogue.add("a.jpg", "photo")
    source, destination = (open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out))
    session = Session(create_job(source, destination, Recipe()), source, destination, catalogue.settings)
    with session.producing() as submitter:
        submitter.items.append(list(Selection().photos(source, destination, Recipe())))
    assert [result.outcome for result in Results(session.job, destination, session.progress)] == ["unfinished"]
    session.feed()
    session.follow()
    assert [result.outcome for result in Results(session.job, destination, session.progress)] == ["done"]


def test_a_damaged_record_is_one_item_that_is_missing(made: Session, tmp_path: Path) -> None:
    """Cut short, or of another shape: table and report say so and go on, and a retry of the doubtful makes it anew."""
    good, doubtful, _ = Results(made.job, made.destination, made.progress)
    shutil.rmtree(tmp_path / "out" / "jobs" / made.job.id / "results")
    for key, record in (
        (good.outputs["caption"], b'{"outcome": "done", "stages": []}'),
        (doubtful.outputs["caption"], b"[]"),
    ):
        made.destination.put(key, record)
    made.destination.put(good.outputs["cutout"], b"\x89PNG\r\n\x1a\n cut short")
    rows = [json.loads(line) for line in export(made).splitlines()]
    assert [(row["outcome"], row["reasons"]) for row in rows[:2]] == [("failed", "missing")] * 2
    assert "is damaged" in rows[0]["detail"]
    made.report(made.summary(made.progress.counts()), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("File missing") >= 2
    assert retry(made, review=True) == 1
    made.follow()
    outcomes = [result.outcome for result in Results(made.job, made.destination, made.progress)]
    assert outcomes == ["failed", "needs_review", "failed"]


def test_who_may_only_read_the_catalogue_can_export_it(made: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping pages for the next time is a help, not a need."""
    forget_results(made.destination, made.job.id, [0])

    def put(*_: object, **__: object) -> bool:
        raise StorageRefusedError("read only")

    with monkeypatch.context() as readonly:
        readonly.setattr(LocalStorage, "put", put)
        assert len(list(Results(made.job, made.destination, made.progress))) == 3
    assert not list(made.destination.list(f"jobs/{made.job.id}/results/"))


def test_rows_that_are_taken_back_while_they_are_read_are_not_kept(made: Session) -> None:
    """A retry that begins meanwhile: the next table tells what comes of it."""
    forget_results(made.destination, made.job.id, [0])

    class Interrupted(Progress):
        """Somebody retries right after the outcome of a page was looked up."""

        def done_of(self, first: int, count: int) -> bytes:
            found = super().done_of(first, count)
            self.forget({0: ""})
            return found

    interrupted = Interrupted(made.client, made.job.id)
    assert next(row.outcome for row in Results(made.job, made.destination, interrupted)) == "done"
    assert next(row.outcome for row in Results(made.job, made.destination, made.progress)) == "unfinished"


def test_what_a_person_approved_is_handed_over(made: Session, tmp_path: Path) -> None:
    """Of the doubtful what was approved, beside what is done; of a table that is none nothing is."""
    approved = tmp_path / "approved.csv"
    approved.write_text("key,id\nunsure.jpg,18\n")
    rows = map(json.loads, export(made, "--approved", str(approved)).splitlines())
    assert [row["key"] for row in rows] == ["a b.jpg", "unsure.jpg"]
    root = joined(made, tmp_path, GOOGLE.replace("99", "18"), "google-xml", "--approved", str(approved))
    assert [item.findtext(f"{G}image_link", "")[:24] for item in root.iter("item")] == [
        "https://cdn.shop.example",
        "https://cdn.shop.example",
    ]
    approved.write_text("key\nanother.jpg\n")
    (row,) = map(json.loads, export(made, "--approved", str(approved)).splitlines())
    assert row["key"] == "a b.jpg"
    approved.write_text("sku\n18\n")
    with pytest.raises(UsageError, match="`key`"):
        export(made, "--approved", str(approved))
    approved = tmp_path / "approved.jsonl"
    approved.write_text('{"key": "unsure.jpg"}\n{"key": ["unsure.jpg"]}\n')
    with pytest.raises(UsageError, match="line 2: the key is missing"):
        export(made, "--approved", str(approved))


def test_a_feed_that_gets_nothing_is_a_failure_that_says_why(made: Session, tmp_path: Path) -> None:
    """Which ids do not meet, and how many items were left aside for what they are."""
    (tmp_path / "merchant.xml").write_text(GOOGLE.replace("17", "SKU-17"))
    given = ["--format", "google-xml", "--feed", str(tmp_path / "merchant.xml"), "--to", str(tmp_path / "feed.xml")]
    address = ["--base-url", "https://cdn.shop.example", "--broker", made.settings.broker.get_secret_value()]
    (tmp_path / "feed.xml").write_text("yesterday's")
    done = CliRunner().invoke(command_line, ["export", made.job.id, *given, *address], standalone_mode=False)
    assert "0 of 2 items" in done.stderr
    assert "not among them: 1 needs_review, 1 failed" in done.stderr
    assert "the manifest's `id`" in str(done.exception)
    assert (tmp_path / "feed.xml").read_text() == "yesterday's"


def test_what_a_killed_export_left_goes_with_the_next(made: Session, tmp_path: Path) -> None:
    """Unless somebody is still writing it."""
    for name in ("dead", "alive"):
        (tmp_path / f".items.jsonl.{name}.part").touch()
    os.utime(tmp_path / ".items.jsonl.dead.part", (1e9, 1e9))
    export(made, "--to", str(tmp_path / "items.jsonl"))
    assert [path.name for path in tmp_path.glob(".items*")] == [".items.jsonl.alive.part"]


def test_every_table_says_the_same(made: Session, tmp_path: Path) -> None:
    """JSON lines, CSV and Parquet; links where there is an address; a formula is shown and not run."""
    base = ("--base-url", "https://cdn.shop.example/c/")
    lines = [json.loads(line) for line in export(made, *base).splitlines()]
    assert [line["outcome"] for line in lines] == ["done", "needs_review", "failed"]
    assert lines[0]["image"].startswith("https://cdn.shop.example/c/a%20b.jpg/image-")
    assert lines[0]["title"] == "=cmd()|<script>alert(1)</script>"
    rows = list(csv.DictReader(io.StringIO(export(made, *base, "--format", "csv").decode())))
    assert rows[0]["title"] == "'=cmd()|<script>alert(1)</script>"
    assert [row["image"] for row in rows] == [line.get("image", "") for line in lines]
    path = tmp_path / "items.parquet"
    export(made, *base, "--format", "parquet", "--to", str(path))
    from pyarrow import parquet  # noqa: PLC0415 - an extra

    found = parquet.read_table(path).to_pylist()
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == lines


def test_only_some_outcomes_are_exported(made: Session) -> None:
    """As asked for."""
    (line,) = export(made, "--only", "needs_review").splitlines()
    assert json.loads(line)["key"] == "unsure.jpg"


GOOGLE = """<?xml version="1.0"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop &amp; co</title><!-- kept -->
<item><g:id>17</g:id><title>Mug</title><g:image_link>https://old.example/1.jpg</g:image_link><g:price>3 EUR</g:price></item>
<item><g:id>99</g:id><title>Not ours</title></item>
</channel></rss>"""


def joined(made: Session, tmp_path: Path, text: str, kind: str, *arguments: str) -> ET.Element:
    feed, to = tmp_path / "merchant.xml", tmp_path / "feed.xml"
    feed.write_text(text)
    base = ("--base-url", "https://cdn.shop.example")
    export(made, "--format", kind, "--feed", str(feed), "--to", str(to), *base, *arguments)
    return ET.parse(to).getroot()  # noqa: S314 - as above


def test_a_google_feed_gets_our_pictures_and_texts(made: Session, tmp_path: Path) -> None:
    """The rest stays as it is; what a program wrote says so; the merchant's texts stay unless they are to be replaced."""
    root = joined(made, tmp_path, GOOGLE, "google-xml", "--keep-pictures")
    ours, other = root.iter("item")
    assert root.findtext("channel/title") == "Shop & co"
    assert (ours.findtext(f"{G}image_link") or "").startswith("https://cdn.shop.example/a%20b.jpg/image-")
    assert ours.findtext(f"{G}additional_image_link") == "https://old.example/1.jpg"
    assert (ours.findtext("title"), ours.findtext(f"{G}price")) == ("Mug", "3 EUR")
    structured = ours.find(f"{G}structured_description")
    assert structured is not None
    assert structured.findtext(f"{G}digital_source_type") == "trained_algorithmic_media"
    assert structured.findtext(f"{G}content") == "a b.jpg"
    assert other.find(f"{G}image_link") is None


YML = """<?xml version="1.0" encoding="windows-1251"?>
<!DOCTYPE yml_catalog SYSTEM "shops.dtd">
<yml_catalog date="2026-11-23"><shop><offers>
<offer id="17" available="true"><price>3</price><picture>https://old.example/1.jpg</picture><picture>https://old.example/2.jpg</picture></offer>
</offers></shop></yml_catalog>"""


def test_a_yandex_feed_gets_our_pictures_and_texts(made: Session, tmp_path: Path) -> None:
    """Ours comes first, further ones stay, the description is filled in where there is none."""
    root = joined(made, tmp_path, YML, "yml", "--language", "ru")
    (offer,) = root.iter("offer")
    pictures = [picture.text or "" for picture in offer.findall("picture")]
    assert pictures[0].startswith("https://cdn.shop.example/a%20b.jpg/image-")
    assert pictures[1:] == ["https://old.example/2.jpg"]
    assert (offer.findtext("description"), offer.findtext("price"), offer.get("available")) == ("a b.jpg", "3", "true")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<rss><channel><item></channel></rss>", "line 1: not well-formed"),
        ("<rss><channel/></rss>", "has no entry or item"),
        ("<rss><item><title>x</title></item></rss>", "has no id: choose another with --on"),
        ('<!DOCTYPE r [<!ENTITY a "b">]><rss><item><id>&a;</id></item></rss>', "declares entities"),
    ],
)
def test_a_feed_that_is_none_leaves_nothing(made: Session, tmp_path: Path, text: str, words: str) -> None:
    """One clear line, and no half file."""
    with pytest.raises(UsageError, match=words):
        joined(made, tmp_path, text, "google-xml")
    assert not (tmp_path / "feed.xml").exists()
    assert not list(tmp_path.glob(".feed.xml*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "xls"], "choose jsonl"),
        (["--format", "parquet"], "--to FILE"),
        (["--format", "yml", "--to", "x.xml"], "merchant's own feed"),
        (["--only", "good"], "choose done"),
        (["--base-url", "ftp://x"], "web address"),
        (["--format", "csv", "--to", "/nowhere/x.csv"], "cannot write"),
    ],
)
def test_what_cannot_be_exported_is_told(made: Session, arguments: list[str], words: str) -> None:
    """Before anything is written."""
    with pytest.raises(VitrinaError, match=words):
        export(made, *arguments)
