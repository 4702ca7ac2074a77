"""Bulk jobs with instant models: what everything around the models costs, and that memory stays flat and nothing is lost.

    KEYS=50000 python -m bench.bulk

First the orchestration against a bare Celery chain of three empty tasks, by turns on the same broker; then one long job, and what it
takes to hand it over; then the status of a job of a hundred million, and listing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psutil

from producer.embedded import S3_KEYS, Broker, S3Server, Worker
from producer.export.rows import Columns
from producer.export.tables import write_table
from producer.listing import list_photos
from producer.results import Results
from producer.session import Session, create_job
from producer.status import Surroundings
from producer.status import status as full_status
from shared.connection import connect
from shared.jobs import read_items
from shared.keys import STAGES
from shared.progress import Failure, Progress
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import open_storage
from shared.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

    from shared.jobs import Job
    from shared.progress import Counts
    from shared.storage import Storage

ROOT = Path(__file__).parents[1]
KEYS = int(os.environ.get("KEYS", "1000000"))
CHAINS, ROUNDS = 3000, 3
"""Chains of the comparison with bare Celery, ten seconds or so of either, and how often they take turns: a shared machine has its moods."""
THREADS = 8
HUGE = 100_000_000
"""Items of the job that is asked for its status."""
LISTED, RENDERED = 20_000, 200_000
"""Objects in the S3 server that is listed, and in the one whose answers are ready."""
SAMPLE_SECONDS = 1.0
BYTES, FILES = 40_000, 10
"""What an item's outputs take of a file system: four small objects with their metadata, each in blocks of 4 kB, and a folder."""


class Watch(threading.Thread):
    """Samples this process's memory, the job's progress and the broker's memory until it is stopped."""

    def __init__(self, client: Redis) -> None:
        super().__init__(daemon=True)
        # Arrays, so that the notes themselves are no objects that grow with the job.
        self.ends, self.resident, self.blocks = array("d"), array("d"), array("d")
        """At each sample: items ended so far, resident bytes of this process, blocks that its Python objects take."""
        self.redis_peak = 0
        self.ended = 0
        self._client = client
        self._process = psutil.Process()
        self._stop_now = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._stop_now.wait(SAMPLE_SECONDS):
            self.ends.append(self.ended)
            self.resident.append(self._process.memory_info().rss)
            self.blocks.append(sys.getallocatedblocks())
            self.redis_peak = max(self.redis_peak, int(self._client.info("memory")["used_memory"]))

    def stop(self) -> None:
        """End the thread."""
        self._stop_now.set()
        self.join()

    def peak_mb(self) -> float:
        """Return the largest resident memory."""
        return max(self.resident, default=self._process.memory_info().rss) / 1e6

    def slope_mb_per_million(self) -> float | None:
        """Return the growth of the resident memory, an allocator's steps up and down included; None for too short a job."""
        return self._slope(self.resident)

    def blocks_per_thousand(self) -> float | None:
        """Return by how many blocks a thousand items make the Python objects grow: whether anything is kept; None for too short a job."""
        slope = self._slope(self.blocks)
        return None if slope is None else 1000 * slope

    def _slope(self, values: array[float]) -> float | None:
        """Fit a line between the first tenth of the job and its end, by least squares."""
        points = [(ended, value) for ended, value in zip(self.ends, values, strict=True) if ended > KEYS / 10]
        if len(points) < 10:  # noqa: PLR2004 - a line through fewer says nothing
            return None
        return statistics.linear_regression(*zip(*points, strict=True)).slope


def bare_rate(broker: Broker, folder: Path) -> float:
    """Return chains per second of three empty tasks with Celery's defaults, one worker per queue."""
    os.environ["BARE_BROKER"] = broker.url
    from bench.bare import STAGES as BARE  # noqa: PLC0415 - reads the address above
    from bench.bare import app  # noqa: PLC0415 - as above

    workers = []
    for stage in BARE:
        command = [sys.executable, "-m", "celery", "-A", "bench.bare", "worker", "-Q", stage, "-n", f"{stage}@bare"]
        options = ["-P", "threads", "-c", str(THREADS), "--without-gossip", "--without-mingle"]
        with (folder / f"{stage}.log").open("wb") as log:
            workers.append(subprocess.Popen([*command, *options], cwd=ROOT, stdout=log, stderr=log))
    try:
        while len(app.control.ping(timeout=1)) < len(BARE):
            time.sleep(0.2)
        one, two, three = (app.tasks[stage] for stage in BARE)
        start = time.perf_counter()
        with app.producer_or_acquire() as producer:
            for number in range(CHAINS):
                key = f"{number:010d}.jpg"
                one.apply_async((key,), chain=[three.si(key), two.si(key)], producer=producer)
        with connect(Settings(broker=broker.url)) as client:
            while any(client.llen(stage) for stage in BARE) or client.hlen("unacked"):
                time.sleep(0.02)
        return CHAINS / (time.perf_counter() - start)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def run_job(settings: Settings, keys: int, folder: Path) -> tuple[float, Watch, Job]:
    """Run a job of `keys` synthetic photos to its end; return its seconds, what was watched, and the job."""
    source, destination = open_storage(f"synthetic://{keys}", settings), open_storage(str(folder), settings)
    with connect(settings) as client:
        watch = Watch(client)
        watch.start()
        start = time.perf_counter()
        session = Session(create_job(source, destination, Recipe()), source, destination, settings)

        def count(counts: Counts) -> None:
            watch.ended = counts.done + counts.failed

        session.feed(count)
        counts = session.follow(count)
        seconds = time.perf_counter() - start
        watch.stop()
        assert (counts.done, counts.failed) == (keys, 0), counts
    return seconds, watch, session.job


def audit(folder: Path, job: Job, settings: Settings) -> tuple[int, int]:
    """Count items without their final output, and outputs beyond one per item and kind."""
    from shared.plan import Plan  # noqa: PLC0415 - only here

    plan, destination = Plan(job.recipe), open_storage(str(folder), settings)
    lost = doubled = 0
    for item in read_items(destination, job.id):
        expected = {key for kinds in plan.outputs(item.key, item.etag).keys.values() for key in kinds.values()}
        made = (folder / item.key).iterdir() if (folder / item.key).is_dir() else ()
        # A local folder keeps an object's metadata in a hidden file beside it.
        found = {str(path.relative_to(folder)) for path in made if not path.name.startswith(".")}
        lost += bool(expected - found)
        doubled += len(found - expected)
    return lost, doubled


def export_rate(folder: Path, job: Job, settings: Settings) -> float:
    """Return rows per second of a table of all items, whose results were gathered while the job ran."""
    destination = open_storage(str(folder), settings)
    columns = Columns(job.recipe)
    with connect(settings) as client, Path(os.devnull).open("wb") as nowhere:
        results = Results(job, destination, Progress(client, job.id))
        start = time.perf_counter()
        write_table("jsonl", (columns.row(result) for result in results), columns, nowhere)
        return KEYS / (time.perf_counter() - start)


def status_ms(settings: Settings, folder: Path) -> float:
    """Return the milliseconds that `vitrina status` spends on a job of `HUGE` items, two thirds through, with failures; the median of 9."""
    destination = open_storage(str(folder), settings)
    folder.mkdir()
    job = create_job(open_storage(f"synthetic://{HUGE}", settings), destination, Recipe())
    session = Session(job, open_storage(job.source, settings), destination, settings)
    bits = os.urandom(HUGE // 8)
    with connect(settings) as client:
        session.progress.begin(job.destination)
        session.progress.listed(HUGE, complete=True)
        session.progress.sent(HUGE)
        for index in range(0, HUGE, 10_000):
            session.progress.fail(Failure(index, f"{index}.jpg", "segmentation", "unreadable", "cut short"))
        for key in client.keys(f"vitrina:job:{job.id}:*"):
            if client.type(key) == b"string":  # a bitmap
                client.set(key, bits)
        times = []
        for _ in range(9):
            start = time.perf_counter()
            counts = session.progress.counts()
            full_status(session.summary(counts), counts, Surroundings.of(client, session.progress, settings))
            times.append(time.perf_counter() - start)
        session.progress.drop()
    return 1000 * statistics.median(times)


def listing_rates(folder: Path, settings: Settings) -> dict[str, float]:
    """Return keys per second: of an S3 server through us and through bare boto3, of one whose answers are ready, and of our own part."""
    with S3Server(folder) as server:
        settings = settings.model_copy(update={"endpoint_url": server.url, **S3_KEYS})
        source = S3Storage.from_settings("s3://bench/photos", settings)
        source.ensure_bucket()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: source.put(f"{number // 100:03d}/{number:05d}.jpg", b"x"), range(LISTED)))
        destination = open_storage(str(folder / "out"), settings)
        keys = {name: secret.get_secret_value() for name, secret in S3_KEYS.items()}
        bare = boto3.client(
            "s3",
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id=keys["access_key_id"],
            aws_secret_access_key=keys["secret_access_key"],
        )
        pages = bare.get_paginator("list_objects_v2")
        return {
            "ours": _rate(list_photos(source, destination)),
            "server": _rate(key for page in pages.paginate(Bucket="bench") for key in page["Contents"]),
            "rendered": rendered_rate(settings, destination),
            "code": _rate(list_photos(open_storage("synthetic://200000", settings), destination)),
        }


def rendered_rate(settings: Settings, destination: Storage) -> float:
    """List a server in a process of its own that takes next to no time for an answer."""
    command = [sys.executable, "-m", "bench.rendered", str(RENDERED)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            there = {"endpoint_url": f"http://127.0.0.1:{int(server.stdout.readline())}"}
            source = S3Storage.from_settings("s3://bench/photos", settings.model_copy(update=there))
            return _rate(list_photos(source, destination))
        finally:
            server.terminate()


def _rate(rows: Iterable[object]) -> float:
    start = time.perf_counter()
    number = sum(1 for _ in rows)
    return number / (time.perf_counter() - start)


def room_for(items: int) -> Path:
    """Return where the outputs of so many items go: memory where it holds them with as much to spare, else the disk.

    Raises:
        SystemExit: Neither holds them.
    """
    memory, disk = Path("/dev/shm"), Path(tempfile.gettempdir())  # noqa: S108 - pictures in memory, as the comparison asks
    for place, share in ((memory, 2), (disk, 1)):
        if not place.is_dir():
            continue
        space = os.statvfs(place)
        free = space.f_bavail * space.f_frsize
        if place == memory:
            free = min(free, psutil.virtual_memory().available)
        if free > share * items * BYTES and space.f_favail > items * FILES:
            return place
    sys.exit(
        f"{items:,} items need {items * BYTES / 1e9:.0f} GB and {items * FILES:,} files in {disk}: set TMPDIR to a larger disk, or KEYS lower"
    )


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    with ExitStack() as stack:
        folder, long = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrina-bulk-", dir=room_for(items))))
            for items in (CHAINS * ROUNDS, KEYS)
        )
        broker = stack.enter_context(Broker(folder / "broker"))
        settings = Settings(broker=broker.url, threads=THREADS, log_level="WARNING")
        for stage in STAGES:
            worker = stack.enter_context(Worker(folder / "logs", stage, settings, app="workers.testing"))
            worker.wait()
        ratios = []
        for number in range(ROUNDS):
            bare = bare_rate(broker, folder)
            seconds, _, _ = run_job(settings, CHAINS, folder / f"short-{number}")
            ratios.append(CHAINS / seconds / bare)
            print(
                f"the three queues  {CHAINS / seconds:8.1f} images/s, {ratios[-1]:.2f} of bare Celery's {bare:.1f} chains/s",
                flush=True,
            )
        seconds, watch, job = run_job(settings, KEYS, long)
        print(f"{KEYS} keys in {seconds:.0f} s: {KEYS / seconds:.1f} images/s; outputs in {long.parent}", flush=True)
        lost, doubled = audit(long, job, settings)
        export = export_rate(long, job, settings)
        print(f"export            {export:8.0f} rows/s", flush=True)
        status = status_ms(settings, folder / "huge")
        print(f"status            {status:8.1f} ms for {HUGE:,} items", flush=True)
        listing = listing_rates(folder, settings)
        print(
            f"listing           {listing['ours']:8.0f} keys/s of an S3 server that gives {listing['server']:.0f} to bare boto3; "
            f"{listing['rendered']:.0f} of one whose answers are ready; our own part {listing['code']:.0f}",
            flush=True,
        )
        figures = {
            "keys": KEYS,
            "lost": lost,
            "doubled": doubled,
            "producer_peak_rss_mb": round(watch.peak_mb(), 1),
            "producer_rss_slope_mb_per_million": watch.slope_mb_per_million(),
            "producer_blocks_per_thousand": watch.blocks_per_thousand(),
            "redis_peak_mb": round(watch.redis_peak / 1e6, 1),
            "orchestration_ratio": round(statistics.median(ratios), 3),
            "images_per_second": round(KEYS / seconds, 1),
            "listing_keys_per_second": round(listing["ours"]),
            "listing_server_keys_per_second": round(listing["server"]),
            "listing_rendered_keys_per_second": round(listing["rendered"]),
            "listing_code_keys_per_second": round(listing["code"]),
            "status_ms": round(status, 2),
            "export_rows_per_second": round(export),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
