"""What Prometheus is told of queues, jobs, workers and the broker, by the keeper and by workers themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from made_jobs import ROOT, Catalogue, Workers
from prometheus_client import CollectorRegistry

from producer.embedded import Broker, free_port
from producer.launch import env_for
from producer.metrics import JOBS_SHOWN, BrokerCollector
from shared.broker import make_app
from shared.connection import connect
from shared.keys import QUEUES, STAGES
from shared.lease import Lease
from shared.progress import Failure, Progress
from shared.settings import Settings
from workers.metrics import DeviceMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

Values = dict[tuple[str, str], float]


def read(registry: CollectorRegistry) -> Values:
    """Return every value by its metric's name and its labels, written `a,b` in the order of the labels' names."""
    return {
        (sample.name, ",".join(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def until(registry: CollectorRegistry, what: Callable[[Values], Any], seconds: float = 60) -> Values:
    """Scrape until something is so."""
    deadline = time.monotonic() + seconds
    while not what(values := read(registry)):
        assert time.monotonic() < deadline, values
        time.sleep(0.1)
    return values


def fetch(port: int, path: str = "/metrics", seconds: float = 30) -> str:
    """Read a page of a process that is starting."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as page:
                return str(page.read().decode())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def registry(settings: Settings) -> Iterator[CollectorRegistry]:
    collector = BrokerCollector(settings)
    found = CollectorRegistry()
    found.register(collector)
    yield found
    collector.close()


def test_a_job_is_seen_while_it_runs_and_gone_when_it_has_ended(
    catalogue: Catalogue, registry: CollectorRegistry
) -> None:
    """Queues, what workers hold, workers and progress; failures stay, since they can be run again."""
    for number in range(6):
        catalogue.add(f"{number}.jpg", "slow:5")
    catalogue.add("bad.jpg", "bad")
    job = catalogue.submit().id
    busy = until(registry, lambda v: v["vitrina_queue_in_flight", "segmentation"] == 4)
    assert busy["vitrina_queue_depth", "segmentation,segmentation"] in {2, 3}
    assert {queue for name, queue in busy if name == "vitrina_queue_depth"} == {
        f"{queue},{queue.partition('.')[0]}" for queue in QUEUES
    }
    assert busy["vitrina_broker_up", ""] == 1
    assert (busy["vitrina_job_items", job], busy["vitrina_jobs_unfinished", ""], busy["vitrina_job_fed", job]) == (
        7,
        1,
        1,
    )
    assert abs(busy["vitrina_job_last_progress_timestamp_seconds", f"{job},running"] - time.time()) < 60
    assert 0 < busy["vitrina_broker_memory_used_bytes", ""] < busy["vitrina_broker_memory_max_bytes", ""]
    until(registry, lambda v: v["vitrina_queue_oldest_seconds", "segmentation,segmentation"] > 0.5)
    until(registry, lambda v: all(v["vitrina_workers", stage] == 1 for stage in STAGES))
    half = until(registry, lambda v: v.get(("vitrina_job_done", job), 0) >= 1)
    assert half["vitrina_job_failed", job] <= 1
    catalogue.client.hset(
        "unacked", mapping={"a": "no JSON", "b": "[1]", "c": "7"}
    )  # by whoever can write to the broker
    ended = until(registry, lambda v: not v["vitrina_jobs_unfinished", ""])
    assert not [name for name, labels in ended if job in labels]
    assert ended["vitrina_dead_letters", "unreadable"] == 1
    end = until(registry, lambda v: not any(v["vitrina_queue_in_flight", stage] for stage in STAGES))
    assert not any(waited for (name, _), waited in end.items() if name == "vitrina_queue_oldest_seconds")
    catalogue.client.hdel("unacked", "a", "b", "c")


def test_the_series_do_not_grow_with_the_jobs(tmp_path: Path) -> None:
    """Twenty jobs are shown, those that stood still longest; all are counted, those forgotten by the broker are not."""
    with Broker(tmp_path) as broker, connect(Settings(broker=broker.url)) as client:
        registry = CollectorRegistry()
        registry.register(BrokerCollector(Settings(broker=broker.url)))
        for number in range(JOBS_SHOWN + 10):
            progress = Progress(client, f"job-{number:02}")
            progress.begin("file:///nowhere")
            progress.listed(1, complete=False)
            client.hset(f"vitrina:job:job-{number:02}:info", "changed", 1000 + number)
        _forget(client, "job-00")
        values = read(registry)
        assert values["vitrina_jobs_unfinished", ""] == JOBS_SHOWN + 9
        shown = sorted(job for name, job in values if name == "vitrina_job_items")
        assert shown == [f"job-{number:02}" for number in range(1, JOBS_SHOWN + 1)]


def _forget(client: Redis, job: str) -> None:
    client.delete(f"vitrina:job:{job}:info")


def test_a_job_whose_producer_has_ended_early_is_told_from_one_that_is_fed(tmp_path: Path) -> None:
    """Also from one that was listed whole but not queued whole; and a pause is told."""
    with Broker(tmp_path) as broker, connect(Settings(broker=broker.url)) as client:
        registry = CollectorRegistry()
        registry.register(BrokerCollector(Settings(broker=broker.url)))
        progress = Progress(client, "job")
        progress.begin("file:///nowhere")
        progress.listed(3, complete=True)
        progress.sent(2)
        progress.fail(Failure(0, "a.jpg", STAGES[0], "storage", "down"))
        assert read(registry)["vitrina_job_fed", "job"] == 0
        with Lease(client, "producer:job", "held"):
            assert read(registry)["vitrina_job_fed", "job"] == 1
        assert read(registry)["vitrina_job_fed", "job"] == 0
        progress.sent(3)
        assert read(registry)["vitrina_job_fed", "job"] == 1
        progress.set_state("paused")
        assert ("vitrina_job_last_progress_timestamp_seconds", "job,paused") in read(registry)


def test_a_keeper_says_that_the_broker_is_down(tmp_path: Path) -> None:
    """Within seconds, with nothing else that would be a guess; the keeper itself is well."""
    port = free_port()
    with Broker(tmp_path / "broker") as broker:
        environment = os.environ | env_for(Settings(broker=broker.url, metrics_port=port, look_every=0.5))
        command = [sys.executable, "-m", "producer.cli", "keeper"]
        keeper = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            assert fetch(port, "/readyz") == "ok\n"
            assert "vitrina_broker_up 1.0" in fetch(port)
            assert "vitrina_keeper_active 1.0" in fetch(port)
            broker.stop()
            start = time.monotonic()
            text = fetch(port)
            assert time.monotonic() - start < 20
            assert "vitrina_broker_up 0.0" in text
            assert "vitrina_queue" not in text
            assert fetch(port, "/healthz") == "ok\n"
        finally:
            keeper.terminate()
            assert keeper.wait(20) == 0


def test_a_worker_tells_its_load_and_its_traffic(tmp_path: Path) -> None:
    """Zeros before the first photo, of its own stages alone; then seconds of the model, bytes, phases."""
    port = free_port()
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        settings = Settings(broker=broker.url, metrics_port=port)
        app, own = make_app(settings), Workers(settings)
        catalogue = Catalogue(tmp_path, settings, app, client)
        catalogue.add("a.jpg", "a photo")
        try:
            own.start("two", "segmentation,inpainting")
            fetch(port, "/readyz")
            fresh = fetch(port)
            catalogue.submit()
            deadline = time.monotonic() + 30
            while 'vitrina_items_total{outcome="done",reason="",stage="inpainting"} 1.0' not in (text := fetch(port)):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            own.stop()
            app.close()
    assert 'vitrina_model_busy_seconds_total{stage="segmentation"} 0.0' in fresh
    assert 'vitrina_items_total{outcome="skipped",reason="",stage="inpainting"} 0.0' in fresh
    assert 'vitrina_items_total{outcome="failed",reason="unreadable",stage="inpainting"} 0.0' in fresh
    assert 'stage="captioning"' not in fresh
    assert 'vitrina_storage_bytes_total{direction="read",stage="segmentation"} 7.0' in text
    assert 'vitrina_storage_bytes_total{direction="written",stage="segmentation"} 14.0' in text  # cutout and mask
    assert "vitrina_storage_paused 0.0" in text
    busy = re.search(r'vitrina_model_busy_seconds_total\{stage="inpainting"\} (\S+)', text)
    assert busy
    assert 0 < float(busy[1]) < 1
    phases = set(re.findall(r'vitrina_phase_seconds_count\{phase="(\w+)",stage="segmentation"\} 1.0', text))
    assert phases == {"model", "fetch", "room", "prepare", "wait", "infer", "finish", "save"}
    assert 'vitrina_queue_wait_seconds_count{stage="segmentation"} 1.0' in text
    assert "vitrina_gpu_memory_bytes" not in text  # instant models use none


class Cuda:
    """What is asked of `torch.cuda`, for a machine with two GPUs of which this process uses the second."""

    def device_count(self) -> int:
        return 2

    def memory_reserved(self, device: int) -> int:
        return 30 * device

    def memory_allocated(self, device: int) -> int:
        return 20 * device

    def mem_get_info(self, device: int) -> tuple[int, int]:
        assert device == 1, "asking would put a context on a GPU that is not ours"
        return 50, 100


def test_gpu_memory_is_told_of_the_gpu_in_use() -> None:
    """The process's part and the whole device's; other GPUs are left alone."""
    (family,) = DeviceMemory(Cuda()).collect()
    assert {(s.labels["device"], s.labels["kind"]): s.value for s in family.samples} == {
        ("1", "used"): 20,
        ("1", "reserved"): 30,
        ("1", "free"): 50,
        ("1", "total"): 100,
    }
