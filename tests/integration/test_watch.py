"""Watching a source: what is new or changed is taken, once, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from made_jobs import wait_until
from pydantic import SecretStr

from producer import repairs
from producer.embedded import S3Server
from producer.events import EventQueue
from producer.launch import env_for
from producer.selection import Selection
from producer.session import Session
from producer.watch import Watch
from shared.errors import JobCancelledError, LeaseHeldError, StorageError, UsageError
from shared.jobs import read_items
from shared.keys import STAGES
from shared.recipe import Recipe
from shared.storage import open_storage
from shared.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from made_jobs import Catalogue
    from redis import Redis

    from shared.settings import Settings
    from shared.storage import Stat, Storage
    from shared.storage.local import LocalStorage


@dataclass
class Faulty:
    """A folder whose listing breaks off after so many photos, and whose writes fail, as often as asked for."""

    inner: LocalStorage
    break_after: list[int] = field(default_factory=list)
    fail_writes: int = 0

    def list(self, *args: Any, **more: Any) -> Iterator[Stat]:
        left = self.break_after.pop(0) if self.break_after else -1
        for stat in self.inner.list(*args, **more):
            if left == 0:
                raise StorageError("the listing broke off")
            left -= 1
            yield stat

    def put(self, key: str, *args: Any, **more: Any) -> None:
        if self.fail_writes and "/items/" in key:
            self.fail_writes -= 1
            raise StorageError("no room")
        self.inner.put(key, *args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def ends(catalogue: Catalogue) -> tuple[Storage, Storage]:
    return open_storage(str(catalogue.photos), catalogue.settings), open_storage(str(catalogue.out), catalogue.settings)


def watch(catalogue: Catalogue, **more: Any) -> Watch:
    return Watch(*ends(catalogue), Recipe(), Selection(), catalogue.settings, **more)


def items(catalogue: Catalogue, job: str) -> list[str]:
    return [item.key for item in read_items(ends(catalogue)[1], job)]


def wait_until_done(session: Session, number: int) -> None:
    until = time.monotonic() + 30
    while session.progress.counts().done != number:
        assert time.monotonic() < until, session.progress.counts()
        time.sleep(0.05)


def test_what_is_new_or_changed_is_taken_and_nothing_else(catalogue: Catalogue) -> None:
    """A photo that was replaced is another item; one that was deleted is none."""
    catalogue.add("a.jpg", "photo")
    catalogue.add("b.jpg", "photo")
    with watch(catalogue) as watching:
        assert watching.look() == 2
        assert watching.look() == 0
        session = Session.reopen(watching.job, None, catalogue.settings)
        wait_until_done(session, 2)
        catalogue.add("c.jpg", "photo")
        catalogue.add("a.jpg", "another photo")
        (catalogue.photos / "b.jpg").unlink()
        assert watching.look() == 2
        assert watching.look() == 0
        wait_until_done(session, 4)
        assert not session.progress.counts().listed
    assert items(catalogue, session.job.id) == ["a.jpg", "b.jpg", "a.jpg", "c.jpg"]


def test_started_again_it_goes_on_with_its_job(catalogue: Catalogue) -> None:
    """What came meanwhile is taken, and what was taken is not."""
    catalogue.add("a.jpg", "photo")
    with watch(catalogue) as watching:
        job = watching.job
        watching.look()
    catalogue.add("b.jpg", "photo")
    with watch(catalogue) as watching:
        assert watching.job == job
        assert watching.look() == 1
    other = Watch(*ends(catalogue), Recipe(), Selection(include=("*.png",)), catalogue.settings)
    with other:
        assert other.job != job


def test_a_look_that_breaks_off_loses_nothing(catalogue: Catalogue, client: Redis) -> None:
    """Neither when the source stops answering in the middle of a listing, nor when the record cannot be written."""
    for number in range(2500):
        catalogue.add(f"{number:04d}.jpg", "photo")
    source, destination = (Faulty(storage) for storage in ends(catalogue))  # type: ignore[arg-type]
    settings = catalogue.settings.model_copy(update={"window": 5000})
    with Watch(source, destination, Recipe(), Selection(), settings) as watching:  # type: ignore[arg-type]
        job = watching.job
        source.break_after = [1700]
        with pytest.raises(StorageError):
            watching.look()
        destination.fail_writes = 1
        with pytest.raises(StorageError):
            watching.look()
        assert watching.look() > 0
    assert sorted(items(catalogue, job)) == [f"{number:04d}.jpg" for number in range(2500)]
    repairs.cancel(Session.reopen(job, None, catalogue.settings))
    client.delete(STAGES[0])  # else the next test waits until workers have thrown 2500 messages away


def test_a_broker_that_comes_back_empty_loses_no_photo(catalogue: Catalogue, client: Redis) -> None:
    """What was taken is worked out from storage, and the rest is queued again."""
    for number in range(5):
        catalogue.add(f"{number}.jpg", "photo")
    with watch(catalogue) as watching:
        watching.look()
        session = Session.reopen(watching.job, None, catalogue.settings)
        wait_until_done(session, 5)
        client.flushdb()
        catalogue.add("5.jpg", "photo")
        watching.look()
        watching.look()
        wait_until_done(session, 6)


def test_cancelling_the_job_ends_the_watch(catalogue: Catalogue) -> None:
    """Another watch is another job, and what is made stays made."""
    catalogue.add("a.jpg", "photo")
    with watch(catalogue) as watching:
        watching.look()
        session = Session.reopen(watching.job, None, catalogue.settings)
        wait_until_done(session, 1)
        repairs.cancel(session)
        catalogue.add("b.jpg", "photo")
        with pytest.raises(JobCancelledError):
            watching.look()
    assert session.progress.counts().finished
    with watch(catalogue) as watching:
        assert watching.job != session.job.id
        watching.look()
        wait_until_done(Session.reopen(watching.job, None, catalogue.settings), 2)


def test_one_process_watches_for_a_job(catalogue: Catalogue) -> None:
    """A second one is refused, and so is feeding the job as if its photos were known."""
    with watch(catalogue) as watching, pytest.raises(LeaseHeldError), watch(catalogue):
        pass
    with watch(catalogue) as watching:
        session = Session.reopen(watching.job, None, catalogue.settings)
        with pytest.raises(UsageError, match="vitrina watch"):
            session.feed()


def test_the_command_runs_until_it_is_stopped(catalogue: Catalogue, tmp_path: Path) -> None:
    """A photo that lands in the folder is made, and that it was is told; SIGTERM is a usual end."""
    command = [sys.executable, "-m", "producer.cli", "watch", str(catalogue.photos), "--out", str(catalogue.out)]
    log = tmp_path / "watch.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--every", "0.2"],
            env=os.environ | env_for(catalogue.settings),
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        assert process.stdout
        job = process.stdout.readline().strip()
        session = Session.reopen(job, None, catalogue.settings)
        catalogue.add("a.jpg", "photo")
        wait_until_done(session, 1)
        wait_until(lambda: "1 of 1 done (0 to review), 0 failed" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not session.fed()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("given", [Selection(limit=3), Selection(sample=3), Selection(manifest="items.csv")])
def test_what_a_watch_cannot_keep_is_refused(catalogue: Catalogue, given: Selection) -> None:
    """It has no first photos, and no list."""
    with pytest.raises(UsageError, match="takes what comes"):
        Watch(*ends(catalogue), Recipe(), given, catalogue.settings)


@pytest.fixture
def bucket(catalogue: Catalogue, tmp_path: Path) -> Iterator[tuple[S3Storage, Settings]]:
    with S3Server(tmp_path) as server:
        keys = {"access_key_id": SecretStr("a"), "secret_access_key": SecretStr("b"), "endpoint_url": server.url}
        settings = catalogue.settings.model_copy(update=keys)
        storage = S3Storage.from_settings("s3://shop/photos", settings)
        storage.ensure_bucket()
        yield storage, settings


def record(key: str, bucket: str = "shop", name: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {"eventName": name, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}


def test_events_of_the_bucket_are_photos(catalogue: Catalogue, bucket: tuple[S3Storage, Settings]) -> None:
    """Straight or through SNS, with names as S3 writes them; messages go once their photos are queued, and what is no event stays."""
    source, settings = bucket
    client = boto3.client(
        "sqs",
        endpoint_url=settings.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",  # noqa: S106 - of the test's own server
    )
    url = client.create_queue(QueueName="photos", Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    for key in ("a.jpg", "red shoe.jpg", "b.jpg", "c.txt"):
        source.put(key, b"photo")
    through_sns = {"TopicArn": "arn", "Message": json.dumps({"Records": [record("photos/b.jpg")]})}
    for body in (
        {"Event": "s3:TestEvent"},
        {"Records": [record("photos/a.jpg"), record("photos/red+shoe.jpg")]},
        through_sns,
        {"Records": [record("photos/a.jpg")]},  # told twice
        {"Records": [record("photos/gone.jpg"), record("photos/a.jpg", name="ObjectRemoved:Delete")]},
        {"Records": [record("photos/a.jpg", bucket="other"), record("elsewhere/a.jpg"), record("photos/c.txt")]},
        {"Records": [record("photos/../a.jpg")]},
        {"Records": [record("photos/\udcff.jpg")]},
        {"unknown": True},
    ):
        client.send_message(QueueUrl=url, MessageBody=json.dumps(body))
    out = open_storage(str(catalogue.out), settings)
    selection = Selection(include=("*.jpg",))
    client.send_message(QueueUrl=url, MessageBody="[" * 100_000)
    queue = EventQueue(url, (source, out), Recipe(), selection, settings, wait=0)
    with Watch(source, out, Recipe(), selection, settings, arrivals=queue) as watching:
        assert watching.look() == 4
        job = watching.job
        assert watching.look() == 0
        assert [failure.reason for failure in Session.reopen(job, None, settings).failures] == ["bad_key"]
        repairs.cancel(Session.reopen(job, None, settings))
    assert sorted(item.key for item in read_items(out, job)) == ["../a.jpg", "a.jpg", "b.jpg", "red shoe.jpg"]
    time.sleep(1.1)
    left = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert sorted(message["Body"][:14] for message in left) == ["[" * 14, '{"Records": [{', '{"unknown": tr']


def test_a_queue_that_is_none_is_told(catalogue: Catalogue, bucket: tuple[S3Storage, Settings]) -> None:
    """An address of another kind at once, one that does not answer at the first look; a folder sends no events."""
    source, settings = bucket
    out = open_storage(str(catalogue.out), settings)
    with pytest.raises(UsageError, match="no address of an SQS queue"):
        EventQueue("photos", (source, out), Recipe(), Selection(), settings)
    with pytest.raises(UsageError, match="goes with a source at s3"):
        EventQueue("https://q/1/photos", ends(catalogue), Recipe(), Selection(), settings)
    missing = EventQueue(f"{settings.endpoint_url}/1/photos", (source, out), Recipe(), Selection(), settings)
    with pytest.raises(StorageError, match="does not answer"):
        list(missing.photos())
