"""What is told of a job, now and later: progress, summary, status and report, with the broker's memory and without it."""

from __future__ import annotations

import io
import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from PIL import Image

from producer import patience, sealing
from producer.cli import app as vitrina
from producer.collect import Collector
from producer.embedded import Broker
from producer.follow import Summary, follow
from producer.listing import list_photos
from producer.sealing import read_failures, seal, unseal
from producer.session import create_job
from producer.submit import Submitter
from shared.broker import make_app
from shared.connection import connect
from shared.errors import BrokerError, JobDamagedError, JobForgottenError
from shared.jobs import Job, load_summary, read_items, read_page, save_items, save_summary
from shared.keys import STAGES
from shared.messages import Item
from shared.plan import Plan
from shared.progress import Failure, Progress
from shared.provenance import Provenance
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import MemoryStorage, Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from shared.progress import Counts


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def client(broker: Broker) -> Iterator[Redis]:
    with connect(Settings(broker=broker.url)) as redis:
        yield redis


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    return file.getvalue()


class Played:
    """A job whose workers are played by the test."""

    def __init__(self, source: Storage, destination: Storage, client: Redis, keys: Sequence[str]) -> None:
        for key in keys:
            source.put(key, picture())
        self.source = source
        self.destination = destination
        self.job = create_job(source, destination, Recipe())
        self.progress = Progress(client, self.job.id)
        self.progress.begin(self.job.destination)
        self.items = [Item(self.job.id, index, key, "etag") for index, key in enumerate(keys)]
        save_items(destination, self.items)
        self.progress.listed(len(keys), complete=True)

    def make(self, index: int, *, review: bool = False) -> None:
        """Write an item's outputs and record it, as three workers would."""
        item = self.items[index]
        outputs = Plan(self.job.recipe).outputs(item.key, item.etag)
        reasons = ("mask_small",) if review else ()
        stage = Provenance(job=self.job.id, reasons=reasons, seconds={"infer": 0.5, "wait": 9.0})
        kinds = {kind: key for names in outputs.keys.values() for kind, key in names.items()}
        record = {
            "outcome": "needs_review" if review else "done",
            "reasons": reasons,
            "captions": {"en": f"Thing {index}"},
            "outputs": kinds,
            "stages": {name: stage.to_dict() for name in STAGES},
        }
        for kind, key in kinds.items():
            data = json.dumps(record).encode() if kind == "caption" else picture()
            self.destination.put(key, data, metadata=stage.to_metadata())
        for name in STAGES:
            self.progress.finish(name, index, ran=True, review=review)

    def fail(self, index: int) -> None:
        """Record an item's failure."""
        self.progress.fail(Failure(index, self.items[index].key, STAGES[0], "unreadable", "cut short"))

    def report(self, path: Path, limit: int = 100) -> str:
        """Write the report and return its page."""
        summary = Summary.of(self.job.id, self.progress.counts(), 2.0)
        collector = Collector(self.job, self.source, self.destination, self.progress, Settings())
        collector.write(path, summary, limit=limit)
        return path.read_text(encoding="utf-8")


def played(folder: Path, client: Redis, *keys: str) -> Played:
    source, destination = (open_storage(str(folder / name), Settings()) for name in ("photos", "out"))
    return Played(source, destination, client, keys)


def indexes(page: str) -> list[int]:
    return [int(index) for index in re.findall(r'id="item-(\d+)"', page)]


def test_a_report_counts_each_item_once_and_says_what_made_it(tmp_path: Path, client: Redis) -> None:
    """Done, in doubt and failed are parts of one whole; models come with their revision, the start as a moment."""
    shop = played(tmp_path, client, "a.png", "b.png", "c.png", "d.png")
    shop.make(0)
    shop.make(1, review=True)
    shop.fail(2)
    page = shop.report(tmp_path / "report.html")
    assert "1 of 4 items ready" in page
    assert "1 not finished yet" in page
    assert indexes(page) == [2, 1, 0]
    assert "saliency u2netp-1" in page
    assert re.search(r'<time datetime="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00">', page)


def test_a_report_in_any_folder_opens_the_files_it_names(tmp_path: Path, client: Redis) -> None:
    """Links lead from the report to the catalogue, whatever the names hold."""
    keys = ["a.png", "mug #1?.png", "100%25.png", "a:b.png", "кружка.png"]
    shop = played(tmp_path, client, *keys)
    for index in range(len(keys)):
        shop.make(index)
    page = shop.report(tmp_path / "reports" / "autumn" / "report.html")
    links = set(re.findall(r'<a [^>]*href="([^"#][^"]*)"', page))
    assert len(links) == 4 * len(keys)
    assert all((tmp_path / "reports" / "autumn" / unquote(link)).is_file() for link in links)


def test_a_report_of_a_bucket_shows_addresses_as_text(tmp_path: Path, client: Redis) -> None:
    """A browser cannot open them."""
    shop = Played(MemoryStorage("shop"), MemoryStorage("made"), client, ["a.png"])
    shop.make(0)
    page = shop.report(tmp_path / "report.html")
    assert re.search(r"<bdi>memory://made/a\.png/image-\w+\.jpg</bdi>", page)
    assert not re.findall(r'<a [^>]*href="[^"#]', page)


def test_many_failures_hide_nothing_and_fill_no_memory(tmp_path: Path, client: Redis) -> None:
    """The first of them are shown; the mean times are those of what was made."""
    shop = played(tmp_path, client, *(f"{number:03}.png" for number in range(605)))
    for index in range(600):
        shop.fail(599 - index)
    shop.make(601)
    page = shop.report(tmp_path / "report.html", limit=3)
    assert indexes(page) == [0, 1, 2]
    assert page.count("500 ms") >= 3
    assert indexes(shop.report(tmp_path / "report.html", limit=10_000)) == [*range(600), 601]


def test_a_report_changes_none_of_the_jobs_records(tmp_path: Path, client: Redis, broker: Broker) -> None:
    """Neither of a running job, whose outcome is not known, nor of one that ended: its figures are those of its end."""
    shop = played(tmp_path, client, "a.png", "b.png")
    shop.make(0)
    command = ["report", shop.job.id, "--to", str(tmp_path / "r.html"), "--broker", broker.url]
    assert vitrina(command, standalone_mode=False) == 0
    assert "1 of 2 items ready" in (tmp_path / "r.html").read_text()
    assert load_summary(shop.destination, shop.job.id) is None
    shop.make(1)
    ended = Summary.of(shop.job.id, shop.progress.counts(), 7262.0).to_dict()
    save_summary(shop.destination, shop.job.id, ended)
    assert vitrina(command, standalone_mode=False) == 0
    assert "2 h 01 min" in (tmp_path / "r.html").read_text()
    assert load_summary(shop.destination, shop.job.id) == ended


def test_a_job_that_the_broker_forgot_is_told_from_storage(
    tmp_path: Path, client: Redis, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Summary, report and status survive the loss of Redis; a job that never ended says how to go on."""
    shop = played(tmp_path, client, "a.png", "b.png", "c.png")
    shop.make(0)
    shop.make(1, review=True)
    shop.fail(2)
    given = ["--out", str(tmp_path / "out"), "--broker", broker.url]
    ended = Summary.of(shop.job.id, shop.progress.counts(), 7262.0).to_dict()
    client.delete(*client.keys(f"vitrina:job:{shop.job.id}:*"))
    with pytest.raises(JobForgottenError, match="submit --resume"):
        vitrina(["status", shop.job.id, "--watch", *given], standalone_mode=False)
    save_summary(shop.destination, shop.job.id, ended)
    assert vitrina(["status", shop.job.id, "--watch", "--json", *given], standalone_mode=False) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: told[name] for name in ended} == ended
    assert told["finished"]
    assert told["stages"] == {}
    assert vitrina(["report", shop.job.id, "--to", str(tmp_path / "r.html"), *given], standalone_mode=False) == 0
    page = (tmp_path / "r.html").read_text()
    assert "1 of 3 items ready" in page
    assert indexes(page) == [1, 0]


def test_a_job_that_nobody_followed_is_summed_up_by_who_asks(tmp_path: Path, client: Redis, broker: Broker) -> None:
    """Its time ends with its last item and not with the question; the first answer stays."""
    shop = played(tmp_path, client, "a.png")
    asked = ["status", shop.job.id, "--broker", broker.url]
    assert vitrina(asked, standalone_mode=False) == 0
    assert load_summary(shop.destination, shop.job.id) is None
    shop.make(0)
    client.hset(f"vitrina:job:{shop.job.id}:info", "changed", int(shop.job.created) + 90)
    assert vitrina(asked, standalone_mode=False) == 0
    summary = load_summary(shop.destination, shop.job.id)
    assert summary is not None
    assert (summary["done"], summary["seconds"]) == (1, pytest.approx(90, abs=1))
    client.hset(f"vitrina:job:{shop.job.id}:info", "changed", int(shop.job.created) + 900)
    assert vitrina(asked, standalone_mode=False) == 0
    assert load_summary(shop.destination, shop.job.id) == summary


def test_nothing_of_a_job_stays_in_the_broker_for_ever(tmp_path: Path, client: Redis) -> None:
    """Each of its keys has an expiry from the start, those that come and go as well, though nobody follows it."""

    def check(least: int) -> None:
        keys = client.keys(f"vitrina:job:{shop.job.id}:*")
        assert len(keys) >= least
        assert [key for key in keys if client.ttl(key) <= 0] == []

    shop = played(tmp_path, client, "a.png", "b.png")
    check(9)
    for stage in STAGES:
        assert [shop.progress.attempt(stage, 0)[0] for _ in range(2)] == [1, 2]
    shop.fail(1)
    check(10)
    shop.make(0)
    shop.make(1)
    check(9)
    shop.progress.attempt(STAGES[0], 1)
    shop.progress.begin(shop.job.destination)
    check(9)
    assert shop.progress.counts().done == 2


def test_no_count_sees_an_item_both_failed_and_done(tmp_path: Path, client: Redis) -> None:
    """A job that seems finished while its last item runs would be ended too early."""
    shop = played(tmp_path, client, *(f"{number}.png" for number in range(200)))
    for index in range(200):
        shop.fail(index)

    def finish() -> None:
        for index in range(200):
            shop.progress.finish(STAGES[-1], index, ran=True, review=False)

    thread = threading.Thread(target=finish)
    thread.start()
    seen = set()
    while thread.is_alive():
        counts = shop.progress.counts()
        seen.add(counts.done + counts.failed)
    thread.join()
    assert seen <= {200}
    assert shop.progress.counts().done == 200


@pytest.mark.parametrize(
    ("pattern", "masks"),
    [
        ("{stem}.mask.png", {"a b.mask.png", "shelf/mug.mask.png"}),
        ("{key}.png", {"shelf/mug.jpg.png"}),
        ("shelf/{stem}.jpg", {"shelf/mug.jpg"}),
        ("{stem}/{stem}.mask.png", set()),
    ],
)
def test_masks_beside_the_photos_are_not_photos(pattern: str, masks: set[str]) -> None:
    """Whatever fits the recipe's pattern is a mask, and only where masks are supplied."""
    source, destination = MemoryStorage("photos"), MemoryStorage("out")
    keys = ["100.jpg", "a b.PNG", "a b.mask.png", "shelf/mask.png", "shelf/mug.jpg", "shelf/mug.mask.png"]
    keys.append("shelf/mug.jpg.png")
    for key in keys:
        source.put(key, b"x")
    section = {"model": "none", "mask": "supplied", "mask_key": pattern}
    recipe = Recipe.from_mapping({"segmentation": section})
    assert {photo.key for photo in list_photos(source, destination, recipe)} == set(keys) - masks
    alpha = Recipe.from_mapping({"segmentation": section | {"mask": "alpha"}})
    assert {photo.key for photo in list_photos(source, destination, alpha)} == set(keys)


def test_following_outlasts_a_broker_that_is_away_while_the_job_is_looked_after(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the question for the counts may find the broker gone."""
    monkeypatch.setattr(patience, "AGAIN_SECONDS", 0.1)
    progress = Progress(client, "followed")
    progress.begin("/somewhere")
    shown: list[Counts] = []
    looked: list[Counts] = []

    def look_after(counts: Counts) -> None:
        looked.append(counts)
        if len(looked) < 3:
            raise BrokerError("away")
        progress.listed(0, complete=True)

    assert follow(progress, shown.append, look_after).finished
    assert len(looked) > 3
    assert len(shown) > 3


@pytest.mark.parametrize(("fault", "words"), [("full", "memory is full.*maxmemory"), ("gone", "does not answer")])
def test_a_producer_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    """A broker that is full or gone ends the submission with the next step, and whoever watches is called meanwhile."""
    monkeypatch.setattr(patience, "SECONDS", 3)
    monkeypatch.setattr(patience, "AGAIN_SECONDS", 0.1)
    source, destination = MemoryStorage("photos"), MemoryStorage(str(tmp_path))
    for number in range(4):
        source.put(f"{number}.jpg", b"x")
    job = create_job(source, destination, Recipe())
    ticks: list[Counts] = []
    with Broker(tmp_path) as own, connect(Settings(broker=own.url)) as client:
        progress = Progress(client, job.id)
        app = make_app(Settings(broker=own.url))

        def tick(counts: Counts) -> None:
            ticks.append(counts)
            if len(ticks) == 1:
                for index in (0, 1):
                    progress.finish(STAGES[-1], index, ran=True, review=False)
            elif fault == "full":
                client.config_set("maxmemory", "1")
            else:
                own.stop()

        progress.begin(job.destination)
        submitter = Submitter(app, progress, job, destination, window=2, tick=tick)
        with pytest.raises(BrokerError, match=f"{words}.*run the same command again"):
            submitter.feed(list_photos(source, destination))
        app.close()
    assert len(ticks) > 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", "{"),
        ("job.json", "[]"),
        ("job.json", "{}"),
        ("job.json", '{"source": "a", "destination": "b", "created": null}'),
        ("recipe.json", "7"),
        ("items/0000000000.jsonl", '{"key": "a.png"}'),
        ("items/notes.txt", "x"),
        ("summary.json", "\x00"),
        ("summary.json", "{}"),
    ],
)
def test_a_damaged_record_is_told_by_its_name(tmp_path: Path, client: Redis, name: str, content: str) -> None:
    """One line and no traceback."""
    shop = played(tmp_path, client, "a.png")
    shop.destination.put(f"jobs/{shop.job.id}/{name}", content.encode())

    def read() -> Any:
        Job.load(shop.job.id, shop.destination)
        list(read_items(shop.destination, shop.job.id))
        read_page(shop.destination, shop.job.id, 0)
        return Summary.from_dict(load_summary(shop.destination, shop.job.id) or {})

    with pytest.raises(JobDamagedError, match=re.escape(name)):
        read()


def test_the_failures_of_a_job_are_written_in_files_of_a_size(
    tmp_path: Path, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By index, whatever order they came in; what is known of the unfinished does not need them."""
    monkeypatch.setattr(sealing, "FILE", 10)
    shop = played(tmp_path, client, *(f"{number:02}.png" for number in range(40)))
    for index in [*range(39, 4, -2), *range(6, 40, 2)]:
        shop.fail(index)
    assert list(shop.progress.unfinished(40)) == [*range(5)]
    assert shop.progress.ended([4, 5, 39]) == [False, True, True]
    for index in range(5):
        shop.make(index)
    seal(shop.destination, shop.progress, Summary.of(shop.job.id, shop.progress.counts(), 1.0))
    names = [stat.key.rsplit("/", 1)[1] for stat in shop.destination.list(f"jobs/{shop.job.id}/failures")]
    assert sorted(names) == ["failures-2.jsonl", "failures-3.jsonl", "failures-4.jsonl", "failures.jsonl"]
    assert [failure.index for failure in read_failures(shop.destination, shop.job.id)] == [*range(5, 40)]
    unseal(shop.destination, shop.job.id)
    assert list(read_failures(shop.destination, shop.job.id)) == []
