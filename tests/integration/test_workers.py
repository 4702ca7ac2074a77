"""Workers and brokers in trouble: nothing is lost, and everybody says why."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from kombu import Consumer, Message, Queue
from kombu.asynchronous import Hub
from made_jobs import ROOT, Catalogue, Workers

from producer.embedded import Broker, free_port
from producer.launch import env_for
from shared.broker import make_app
from shared.connection import connect
from shared.keys import STAGES
from shared.messages import Item
from shared.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_full_broker_holds_the_job_up_and_loses_nothing(tmp_path: Path) -> None:
    """Refused messages wait with their workers; when there is room again, everything goes on."""
    with Broker(tmp_path / "broker") as broker:
        settings = Settings(broker=broker.url, visibility_timeout=4)
        app, own = make_app(settings), Workers(settings)
        with connect(settings) as client:
            catalogue = Catalogue(tmp_path, settings, app, client)
            for number in range(200):
                catalogue.add(f"{number}.jpg", "slow:0.05")
            try:
                for stage in STAGES:
                    own.start(stage, stage)
                job = catalogue.submit()
                while catalogue.progress(job).counts().done < 5:
                    time.sleep(0.02)
                client.config_set("maxmemory", "1mb")
                time.sleep(4)
                stalled = catalogue.progress(job).counts().done
                time.sleep(2)
                assert catalogue.progress(job).counts().done == stalled < 200
                client.config_set("maxmemory", "0")
                summary = catalogue.follow(job)
                assert all(process.poll() is None for process in own.processes.values())
            finally:
                own.stop()
                app.close()
            assert (summary.done, summary.failed) == (200, 0)
            assert set(catalogue.outputs()) == catalogue.expected(job)


def test_a_photo_that_kills_its_worker_is_recorded_in_the_end(tmp_path: Path) -> None:
    """The count of starts ends it; the workers it killed are started again, as a supervisor would."""
    with Broker(tmp_path / "broker") as broker:
        limited = Settings(broker=broker.url, visibility_timeout=2, max_attempts=2)
        app, own = make_app(limited), Workers(limited)
        with connect(limited) as client:
            catalogue = Catalogue(tmp_path, limited, app, client)
            catalogue.add("poison.jpg", "die")
            try:
                job = catalogue.submit()
                deadline = time.monotonic() + 90
                while not catalogue.progress(job).counts().finished:
                    assert time.monotonic() < deadline
                    if "own" not in own.processes or own.processes["own"].poll() is not None:
                        own.start("own", STAGES[0])
                    time.sleep(0.2)
                assert [f.reason for f in catalogue.failures(job)] == ["worker_lost"]
            finally:
                own.stop()
                app.close()


def test_a_failure_is_kept_as_one_line_however_much_a_library_says(tmp_path: Path) -> None:
    """A fault that every photo of a large job has must not fill the broker."""
    with Broker(tmp_path / "broker") as broker:
        settings = Settings(broker=broker.url)
        app, own = make_app(settings), Workers(settings)
        with connect(settings) as client:
            catalogue = Catalogue(tmp_path, settings, app, client)
            catalogue.add("bug.jpg", "bug:no such layer\n" + "at some place\n" * 10_000)
            try:
                own.start("own", STAGES[0])
                job = catalogue.submit()
                catalogue.follow(job)
                (failure,) = catalogue.failures(job)
            finally:
                own.stop()
                app.close()
    assert failure.detail.startswith("ZeroDivisionError: no such layer at some place")
    assert len(failure.detail) <= 500


def test_a_lease_is_renewed_only_while_it_is_held(tmp_path: Path) -> None:
    """A message that went back belongs to whoever takes it next."""
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        settings = Settings(broker=broker.url)
        app = make_app(settings)
        app.signature(STAGES[0], args=({},)).apply_async()
        with app.connection_for_read() as first, app.connection_for_read() as second:
            one, two = first.channel(), second.channel()
            taken = one.basic_get(STAGES[0])
            one.basic_reject(taken.delivery_tag, requeue=True)
            assert two.basic_get(STAGES[0]).delivery_tag == taken.delivery_tag
            client.zadd("unacked_index", {taken.delivery_tag: 1e12}, xx=True)
            one.qos.restore_visible()
            assert client.zscore("unacked_index", taken.delivery_tag) == 1e12
            two.qos.restore_visible()
            assert client.zscore("unacked_index", taken.delivery_tag) < 1e12
        app.close()


@pytest.mark.parametrize("broken", [False, True])
def test_an_acknowledgement_arrives_though_the_connection_breaks_that_carries_it(tmp_path: Path, broken: bool) -> None:
    """In an event loop it travels with the next taking; one that may not have got there is sent again."""
    photos = [Item("job", number, f"{number}.jpg", "e") for number in range(3)]
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        app, hub = make_app(Settings(broker=broker.url)), Hub()
        for photo in photos:
            app.signature(STAGES[0], args=(photo.to_wire(),)).apply_async()
        taken: list[Message] = []
        with app.connection_for_read() as connection, connection.channel() as channel:
            connection.register_with_event_loop(hub)
            hub.propagate_errors = connection.connection_errors
            consumer = Consumer(channel, [Queue(STAGES[0])], on_message=taken.append)
            consumer.qos(prefetch_count=len(photos))
            consumer.consume()
            turns = hub.create_loop()
            while len(taken) < len(photos):
                next(turns)
            for message in taken:
                message.ack()
            assert client.hlen("unacked") == client.zcard("unacked_index") == len(photos)
            if broken:
                client.client_kill_filter(_type="normal", skipme=True)
                with suppress(*connection.connection_errors):
                    for _ in range(5):
                        next(turns)
                hub.close()
            else:
                while client.hlen("unacked"):
                    next(turns)
            assert client.hlen("unacked") == client.zcard("unacked_index") == 0
        hub.close()
        app.close()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"VITRINA_METRICS_PORT": "{broker}"}, "cannot serve metrics at port"),
        ({"VITRINA_PRELOAD": "/nowhere/recipe.yaml"}, "no recipe file /nowhere/recipe.yaml"),
    ],
)
def test_a_worker_that_cannot_start_as_configured_says_why_and_ends(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    """Status 78: a supervisor that knows it does not try again and again."""
    command = [sys.executable, "-m", "celery", "-A", "workers.testing", "worker", "-Q", STAGES[0], "-P", "threads"]
    with Broker(tmp_path / "broker") as broker:
        port = broker.url.rpartition(":")[2].partition("/")[0]
        given = {name: value.replace("{broker}", port) for name, value in environment.items()}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | env_for(Settings(broker=broker.url)) | given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 78, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_tells_prometheus_what_it_did(tmp_path: Path) -> None:
    """Items by outcome, seconds by phase, batch sizes."""
    port = free_port()
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        settings = Settings(broker=broker.url, metrics_port=port)
        app, own = make_app(settings), Workers(settings)
        catalogue = Catalogue(tmp_path, settings, app, client)
        catalogue.add("a.jpg", "photo")
        catalogue.add("b.jpg", "bad")
        catalogue.add("c.jpg", "doubt:inpainting")
        try:
            own.start("all", ",".join(STAGES))
            assert catalogue.follow(catalogue.submit()).failed == 1
            text, until = "", time.monotonic() + 30
            while not all(
                f'{{outcome="{end}",reason="",stage="captioning"}} 1.0' in text for end in ("done", "needs_review")
            ):
                assert time.monotonic() < until, text  # an item is counted when it is done already
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                    text = page.read().decode()
        finally:
            own.stop()
            app.close()
    assert 'vitrina_items_total{outcome="failed",reason="unreadable",stage="segmentation"} 1.0' in text
    assert 'vitrina_phase_seconds_count{phase="infer",stage="inpainting"} 2.0' in text
    assert 'vitrina_batch_size_sum{stage="segmentation"} 2.0' in text
    assert 'vitrina_phase_seconds_count{phase="unfinished",stage="segmentation"} 1.0' in text
    assert 'vitrina_phase_seconds_count{phase="fetch",stage="segmentation"} 3.0' in text
    assert 'vitrina_review_reasons_total{reason="asked_for",stage="inpainting"} 1.0' in text
    assert 'vitrina_review_reasons_total{reason="asked_for",stage="captioning"}' not in text


def test_a_broker_address_that_is_none_is_one_clear_line() -> None:
    """Also where Celery's own command is used."""
    command = [sys.executable, "-m", "celery", "-A", "workers.testing", "worker", "-Q", STAGES[0], "-P", "threads"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"VITRINA_BROKER": "foo://:secret@x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert "not a broker address" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
