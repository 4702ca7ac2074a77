"""Three queues and the workers an autoscaler gives them, second by second: an event loop without anything real in it."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench.scaling import SYNC_SECONDS, Autoscaler, Formula
from shared.keys import STAGES
from shared.presence import EVERY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.scaling import Rule
    from shared.keys import StageName

REDELIVERY_SECONDS = 12
"""Until the photos of a worker that was killed are handed out again: VITRINA_VISIBILITY_TIMEOUT."""
FEED = 200
"""Photos that a producer publishes at once."""


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a machine is assumed to do. Seconds, and images per second of one worker."""

    speed: Mapping[StageName, float]
    load: Mapping[StageName, float]
    """From the container's start to its first photo: the model's way to the GPU."""
    start: float
    """From being wanted to the container's start: a node, its image."""
    transfer: float
    """Fetching and uploading around a batch, which the next batch does not wait for."""
    grace: float
    batch: int = 8


@dataclass(slots=True, eq=False)
class Photo:
    """One photo on its way."""

    kind: str
    born: float
    """When it was queued."""


@dataclass(slots=True, eq=False)
class Worker:
    """One pod. It costs from the moment it is wanted until it is gone."""

    since: float
    ready: bool = False
    leaving: bool = False
    held: list[Photo] = field(default_factory=list)
    until: float = 0
    """When its batch is computed."""
    uploading: int = 0
    """Photos of earlier batches."""
    done: float = 0
    """When everything it has begun is uploaded."""

    @property
    def busy(self) -> bool:
        """Whether it holds a message."""
        return bool(self.held or self.uploading)


@dataclass(slots=True, eq=False)
class Stage:
    """A stage's two queues, its workers, and what is counted of them."""

    name: StageName
    autoscaler: Autoscaler
    formula: Formula
    priority: deque[Photo] = field(default_factory=deque)
    normal: deque[Photo] = field(default_factory=deque)
    workers: list[Worker] = field(default_factory=list)
    busy: int = 0
    """Workers that last said so; those that are told to stop say so no more."""
    seconds: float = 0
    """Paid for: workers times time."""
    peak: int = 0
    busy_removed: int = 0
    longest_drain: float = 0
    killed: int = 0

    def put(self, photo: Photo) -> None:
        """Queue a photo."""
        (self.priority if photo.kind == "interactive" else self.normal).append(photo)
        self.peak = max(self.peak, len(self.priority) + len(self.normal))

    def take(self, most: int) -> list[Photo]:
        """Give a worker what waits, the priority queue first."""
        taken: list[Photo] = []
        for queue in (self.priority, self.normal):
            while queue and len(taken) < most:
                taken.append(queue.popleft())
        return taken


class Fleet:
    """Runs until `horizon`, and longer while something is left to do: to twice that, and what is unfinished then never ends."""

    def __init__(
        self, rules: Mapping[StageName, Rule], assumed: Assumed, horizon: float, *, warm: bool = False
    ) -> None:
        """`warm`: each stage begins with as many ready workers as its rule keeps at least."""
        self._assumed = assumed
        self._horizon = horizon
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._unfinished: dict[str, int] = {}
        self.now = 0.0
        self.queued = 0
        self.ended: dict[str, list[float]] = {}
        """Seconds from being queued to having its caption, of every photo, by kind."""
        self.stages = {name: Stage(name, Autoscaler(rule), Formula(rule.formula)) for name, rule in rules.items()}
        for number, stage in enumerate(self.stages.values()):
            if warm:
                stage.autoscaler.replicas = stage.autoscaler.rule.minimum
                stage.workers = [Worker(0, ready=True) for _ in range(stage.autoscaler.rule.minimum)]
            self._every(stage.autoscaler.rule.polling, number, partial(self._scale, stage, "poll"))
            self._every(SYNC_SECONDS, number + 5, partial(self._scale, stage, "sync"))
            self._every(EVERY_SECONDS, number, partial(self._show, stage))

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (when, next(self._order), do))

    def queue(self, kind: str, photos: int) -> None:
        """Queue photos for the first stage."""
        for _ in range(photos):
            self.stages[STAGES[0]].put(Photo(kind, self.now))
        self.queued += photos
        self._unfinished[kind] = self._unfinished.get(kind, 0) + photos
        self._work(self.stages[STAGES[0]])

    def feed(self, photos: int, window: int) -> None:
        """Queue a bulk job as its producer does: never more unfinished photos than the window has room for."""
        room = min(photos, window - self._unfinished.get("bulk", 0))
        if room >= min(FEED, photos):
            self.queue("bulk", room)
            photos -= room
        if photos:
            self.at(self.now + 0.2, lambda: self.feed(photos, window))

    def run(self) -> None:
        """Let time pass."""
        while self._events:
            when, _, do = heapq.heappop(self._events)
            if when >= self._horizon and (not any(self._unfinished.values()) or when >= 2 * self._horizon):
                break
            self.now = when
            do()
        self.now = max(self.now, self._horizon)
        for stage in self.stages.values():
            for worker in stage.workers:
                stage.seconds += self.now - worker.since

    def _every(self, seconds: float, first: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self.at(self.now + seconds, again)

        self.at(first, again)

    @staticmethod
    def _show(stage: Stage) -> None:
        stage.busy = sum(worker.busy and not worker.leaving for worker in stage.workers)

    def _scale(self, stage: Stage, how: str) -> None:
        metric = stage.formula(self._lengths() | {"busy": stage.busy})
        getattr(stage.autoscaler, how)(self.now, metric)
        staying = [worker for worker in stage.workers if not worker.leaving]
        for _ in range(stage.autoscaler.replicas - len(staying)):
            self._start(stage)
        # Kubernetes takes those first that are not ready, then the youngest; whether one is busy it does not know.
        staying.sort(key=lambda worker: (worker.ready, -worker.since))
        for worker in staying[: max(0, len(staying) - stage.autoscaler.replicas)]:
            self._remove(stage, worker)

    def _lengths(self) -> dict[str, float]:
        lengths: dict[str, float] = {"held": 0.0}
        for name, stage in self.stages.items():
            lengths[name] = len(stage.normal)
            lengths[f"{name}_priority"] = len(stage.priority)
            lengths["held"] += sum(len(worker.held) + worker.uploading for worker in stage.workers)
        return lengths

    def _start(self, stage: Stage) -> None:
        worker = Worker(self.now)
        stage.workers.append(worker)

        def ready() -> None:
            worker.ready, worker.until = True, self.now
            self._work(stage)

        self.at(self.now + self._assumed.start + self._assumed.load[stage.name], ready)

    def _remove(self, stage: Stage, worker: Worker) -> None:
        worker.leaving = True
        if not worker.busy:
            self._gone(stage, worker)
            return
        stage.busy_removed += 1
        drain = worker.done - self.now
        stage.longest_drain = max(stage.longest_drain, drain)
        if drain > self._assumed.grace:
            self.at(self.now + self._assumed.grace, lambda: self._kill(stage, worker))

    def _kill(self, stage: Stage, worker: Worker) -> None:
        photos, worker.held = worker.held, []
        stage.killed += len(photos)
        self._gone(stage, worker)
        for photo in photos:
            self.at(self.now + REDELIVERY_SECONDS, partial(self._arrive, stage, photo))

    def _gone(self, stage: Stage, worker: Worker) -> None:
        if worker in stage.workers:
            stage.workers.remove(worker)
            stage.seconds += self.now - worker.since

    def _arrive(self, stage: Stage, photo: Photo) -> None:
        stage.put(photo)
        self._work(stage)

    def _work(self, stage: Stage) -> None:
        # Who has waited longest is served first, as by the broker.
        for worker in sorted(stage.workers, key=lambda worker: worker.until):
            if not (stage.priority or stage.normal):
                return
            if worker.ready and not worker.leaving and not worker.held:
                worker.held = stage.take(self._assumed.batch)
                worker.until = self.now + len(worker.held) / self._assumed.speed[stage.name]
                worker.done = worker.until + self._assumed.transfer
                self.at(worker.until, partial(self._computed, stage, worker))

    def _computed(self, stage: Stage, worker: Worker) -> None:
        photos, worker.held = worker.held, []
        if not photos:
            return  # killed meanwhile
        worker.uploading += len(photos)
        self.at(self.now + self._assumed.transfer, lambda: self._uploaded(stage, worker, photos))
        self._work(stage)

    def _uploaded(self, stage: Stage, worker: Worker, photos: list[Photo]) -> None:
        worker.uploading -= len(photos)
        if worker.leaving and not worker.busy:
            self._gone(stage, worker)
        following = STAGES[STAGES.index(stage.name) + 1 :][:1]
        for photo in photos:
            if following:
                self.stages[following[0]].put(photo)
            else:
                self.ended.setdefault(photo.kind, []).append(self.now - photo.born)
                self._unfinished[photo.kind] -= 1
        if following:
            self._work(self.stages[following[0]])
