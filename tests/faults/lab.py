"""A laboratory: a broker, workers that are started again when they die, photos, jobs, and the count at the end."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from PIL import Image

from producer.embedded import Broker, Worker
from producer.session import Session, create_job
from shared.bitmap import bit
from shared.connection import connect
from shared.jobs import read_items
from shared.keys import STAGES
from shared.plan import Plan
from shared.queues import depths
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from shared.storage import Storage

FAST = Recipe.from_mapping(
    {
        "segmentation": {"model": "none"},
        "background": {"model": "color", "color": "#ffffff"},
        "picture": {"format": "png"},
        "caption": {"model": "none"},
    }
)
"""Real stages that take milliseconds: the photo's own alpha, a colour, no caption."""


SETTLE_SECONDS = 60.0
"""Longest wait after a job for messages that were delivered again: a few leases."""


@dataclass
class Outcome:
    """What a scenario ended with."""

    submitted: int = 0
    finished: int = 0
    failed: int = 0
    lost: int = 0
    """Photos that were not listed, items that are neither finished nor failed, or finished without an output."""
    doubled_outputs: int = 0
    """Outputs beyond one per item and kind."""
    slowest_recovery_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Promises that were broken, in words."""
    late: list[str] = field(default_factory=list)
    """Recoveries that took longer than promised: a fault where the machine had nothing else to do."""
    also: dict[str, float] = field(default_factory=dict)
    """Further figures."""

    def expect(self, promise: str, kept: object) -> None:
        """Note a promise that was not kept."""
        if not kept:
            self.wrong.append(promise)

    def expect_within(self, limit: float, seconds: float, promise: str) -> None:
        """Note a promise that was kept too late."""
        if seconds > limit:
            self.late.append(f"{promise} within {limit:g} s: it took {seconds:.1f}")

    @property
    def well(self) -> bool:
        """Whether nothing was lost, doubled or broken, however long it took."""
        return not (self.lost or self.doubled_outputs or self.wrong)


class Recoveries:
    """How long it takes until each item that ran in a killed worker runs again, or has ended.

    Who ran what nobody knows: all that runs in the killed worker's stage is watched. What ends before its lease could have run out
    was in another worker, and does not count.
    """

    def __init__(self, lab: Lab) -> None:
        self._client = lab.client
        self._least = lab.settings.visibility_timeout / 2
        self._open: dict[tuple[str, bytes], tuple[float, int]] = {}
        # By stage and item: since when it waits, and how often it had been started again.
        self.seconds: list[float] = []

    def killed(self, session: Session, stage: str) -> None:
        """Remember what was running in the stage of a worker that has just been killed; what waits already goes on doing so."""
        key = f"vitrina:job:{session.job.id}:attempts:{stage}"
        for index, starts in self._started(key).items():
            self._open.setdefault((key, index), (time.monotonic(), starts))

    def look(self) -> None:
        """See what has ended or runs again since."""
        now = time.monotonic()
        for key in {key for key, _ in self._open}:
            started = self._started(key)
            for name, (since, starts) in list(self._open.items()):
                if name[0] == key and started.get(name[1]) != starts:
                    del self._open[name]
                    if now - since > self._least:
                        self.seconds.append(now - since)

    @property
    def over(self) -> bool:
        """Whether nothing is waited for."""
        return not self._open

    def _started(self, key: str) -> dict[bytes, int]:
        """Return how often each item was started again: a suspect's start counts when it runs, alone, and not when it waits for that."""
        found: Any = self._client.hgetall(key)
        return {index: int(found.get(index + b":alone", 0)) for index in found if index.isdigit()}


class Lab(AbstractContextManager["Lab"]):
    """Everything on loopback and in one folder; ends with everything stopped."""

    def __init__(
        self, folder: Path, *, each: int = 1, app: str = "workers.testing", seed: int = 1, **settings: Any
    ) -> None:
        """Plan `each` workers per stage. Workers of `workers.app` run real models, those of `workers.testing` do as the photos say."""
        self.folder = folder
        self.chance = random.Random(seed)  # noqa: S311 - a repeatable course of events
        self.photos = folder / "photos"
        self.out = folder / "out"
        self.broker = Broker(folder / "broker")
        preload = folder / "recipe.json"
        folder.mkdir(parents=True, exist_ok=True)
        preload.write_bytes(FAST.to_json())
        fixed: dict[str, Any] = {"retry_base": 0.05, "threads": 4, "window": 400, "look_every": 1, "preload": preload}
        self.settings = Settings(broker=self.broker.url, **fixed | settings)
        self._each = each
        self._app = app
        self.workers: list[Worker] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.enter_context(self.broker)
            self.client = starting.enter_context(connect(self.settings))
            for stage in STAGES:
                for number in range(self._each):
                    self.workers.append(self.worker(stage, number))
            starting.callback(self._stop_workers)
            for worker in self.workers:
                worker.start()
            for worker in self.workers:
                worker.wait()
            self._stack = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def worker(self, stage: Any, number: int) -> Worker:
        """Return a worker that is not started yet."""
        return Worker(self.folder / f"{stage}-{number}", stage, self.settings, app=self._app)

    def _stop_workers(self) -> None:
        for worker in self.workers:
            if worker.running:
                os.kill(worker.pid, signal.SIGKILL)  # one that is stopped hears nothing else
            worker.stop()

    def say(self, name: str, text: str) -> None:
        """Make a photo whose text tells an instant model what to do."""
        self.photos.mkdir(exist_ok=True)
        (self.photos / name).write_text(text)

    def draw(self, count: int) -> None:
        """Make small real photos with alpha, all different."""
        self.photos.mkdir(exist_ok=True)
        for number in range(count):
            image = Image.new("RGBA", (24, 24), (number % 251, number // 251 % 251, 90, 0))
            image.paste((number % 241, 60, number // 241 % 241, 255), (5, 5, 19, 20))
            image.save(self.photos / f"{number:06d}.png")

    def session(self, recipe: Recipe = FAST, *, source: Storage | None = None, out: Storage | None = None) -> Session:
        """Make a job of the photos."""
        source = source or open_storage(str(self.photos), self.settings)
        destination = out or open_storage(str(self.out), self.settings)
        return Session(create_job(source, destination, recipe), source, destination, self.settings)

    def run(self, session: Session, act: Callable[[], None] = lambda: None, *, seconds: float) -> None:
        """Feed and follow a job, start workers again that have ended, and call `act` several times a second. Raises `TimeoutError`."""
        until = time.monotonic() + seconds

        def tick(_: object = None) -> None:
            if time.monotonic() > until:
                raise TimeoutError(f"{session.job.id} has not ended in {seconds} s: {session.progress.counts()}")
            self.supervise()
            act()

        session.feed(tick)
        session.follow(tick)

    def supervise(self) -> None:
        """Start again what has ended, as a supervisor does."""
        for worker in self.workers:
            if not worker.running:
                worker.start()

    def _settle(self) -> None:
        """Let what was delivered twice end: the second copy of an item may outlast its job."""
        until = time.monotonic() + SETTLE_SECONDS
        while any(depths(self.client).values()) and time.monotonic() < until:
            self.supervise()
            time.sleep(0.1)

    def audit(self, session: Session) -> Outcome:
        """Count what became of every photo; what the broker holds of them ends as well."""
        self._settle()
        counts = session.progress.counts()
        photos = sum(1 for _ in session.source.list())
        outcome = Outcome(submitted=photos, finished=counts.done, failed=counts.failed)
        failed = {failure.index for failure in session.failures}
        done, _, _ = session.progress.outcome_bits()
        outcome.expect("no item is both finished and failed", not any(bit(done, index) for index in failed))
        outcome.expect(f"no message is left: {depths(self.client)}", not any(depths(self.client).values()))
        plan = Plan(session.job.recipe)
        expected: set[str] = set()
        there = {stat.key for stat in session.destination.list() if not stat.key.startswith("jobs/")}
        for item in read_items(session.destination, session.job.id):
            outputs = plan.outputs(item.key, item.etag, item.fields)
            keys = {key for kinds in outputs.keys.values() for key in kinds.values()}
            expected |= keys
            outcome.lost += item.index not in failed and not keys <= there
        outcome.lost += max(0, photos - counts.done - counts.failed)
        outcome.doubled_outputs = len(there - expected)
        return outcome
