"""Folders of photos, jobs made from them, and worker processes with instant models."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from producer.failures import Failures
from producer.follow import Summary, follow
from producer.launch import env_for
from producer.selection import Selection
from producer.session import Session, create_job
from shared.jobs import Job, read_items
from shared.plan import Plan
from shared.progress import Failure, Progress
from shared.queues import depths
from shared.recipe import Recipe
from shared.storage import open_storage

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

    from producer.manifest import Manifest
    from shared.settings import Settings

ROOT = Path(__file__).parents[2]


class Workers:
    """Worker processes with instant models, one per stage unless asked for more."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, queues: str) -> None:
        options = ["-P", "threads", "-c", "4", "--without-gossip", "--without-mingle", "-n", f"{name}@test"]
        command = [sys.executable, "-m", "celery", "-A", "workers.testing", "worker", "-Q", queues, *options]
        self.processes[name] = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | env_for(self.settings), stderr=subprocess.DEVNULL
        )

    def works(self, name: str, app: Celery) -> bool:
        """Tell whether a worker says that it has a photo at hand."""
        node = f"{name}@test"
        return bool((app.control.inspect([node], timeout=1).active() or {}).get(node))

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Catalogue:
    """A folder of photos and the jobs made from it."""

    def __init__(self, folder: Path, settings: Settings, app: Celery, client: Redis) -> None:
        self.photos = folder / "photos"
        self.photos.mkdir()
        self.out = folder / "out"
        self.settings = settings
        self.app = app
        self.client = client

    def add(self, name: str, text: str) -> None:
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def submit(self, recipe: Recipe | None = None, manifest: Manifest | None = None) -> Job:
        source = open_storage(str(self.photos), self.settings)
        destination = open_storage(str(self.out), self.settings)
        selection = Selection(manifest=manifest.name) if manifest else None
        job = create_job(source, destination, recipe or Recipe(), selection)
        Session(job, source, destination, self.settings).feed()
        return job

    def session(self, job: Job) -> Session:
        return Session.reopen(job.id, None, self.settings)

    def progress(self, job: Job) -> Progress:
        return Progress(self.client, job.id)

    def failures(self, job: Job) -> list[Failure]:
        return list(Failures(open_storage(str(self.out), self.settings), self.progress(job)))

    def settle(self, seconds: float = 60) -> None:
        """Wait until no message waits or is held."""
        deadline = time.monotonic() + seconds
        while any(depths(self.client).values()):
            assert time.monotonic() < deadline, depths(self.client)
            time.sleep(0.05)

    def follow(self, job: Job, seconds: float = 120) -> Summary:
        deadline = time.monotonic() + seconds

        def check(counts: object) -> None:
            assert time.monotonic() < deadline, f"not finished in {seconds} s: {counts}"

        return Summary.of(job.id, follow(self.progress(job), check), 1.0)

    def outputs(self) -> dict[str, bytes]:
        files = (path for path in self.out.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {
            str(p.relative_to(self.out)): p.read_bytes() for p in files if p.relative_to(self.out).parts[0] != "jobs"
        }

    def expected(self, job: Job) -> set[str]:
        plan = Plan(job.recipe)
        items = read_items(open_storage(str(self.out), self.settings), job.id)
        return {key for i in items for kinds in plan.outputs(i.key, i.etag).keys.values() for key in kinds.values()}


def unfed(catalogue: Catalogue, recipe: Recipe | None = None) -> Session:
    """Make a job that nobody has fed yet."""
    source, destination = (open_storage(str(path), catalogue.settings) for path in (catalogue.photos, catalogue.out))
    return Session(create_job(source, destination, recipe or Recipe()), source, destination, catalogue.settings)


def wait_until(what: object, seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator] # a function
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def followed(session: Session, seconds: float = 120) -> tuple[int, int, int]:
    """Follow a job to its end and return how many items it has, and how many are done and failed."""
    deadline = time.monotonic() + seconds

    def check(counts: object) -> None:
        assert time.monotonic() < deadline, f"not finished in {seconds} s: {counts}"

    counts = session.follow(check)
    return counts.items, counts.done, counts.failed
