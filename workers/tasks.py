"""The three Celery tasks: thin adapters that turn what a stage raised into retry, failure record or success."""

from __future__ import annotations

import logging
import math
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from celery import Task
from celery.exceptions import Reject, TaskPredicate
from kombu.exceptions import OperationalError

from shared.errors import (
    BrokerError,
    JobCancelledError,
    JobForgottenError,
    MessageError,
    ObjectMissingError,
    OutOfMemoryError,
    StageFailedError,
    StorageError,
    VitrinaError,
    WorkerLostError,
)
from shared.messages import Item
from shared.progress import Failure
from workers import metrics
from workers.batcher import HandedBackError, is_out_of_memory
from workers.quarantine import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.keys import StageName
    from shared.progress import Progress
    from shared.tracing import Tracing
    from workers.outage import Outage
    from workers.quarantine import Quarantine
    from workers.runner import Runner
    from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0
"""Seconds. A waiting retry is held by its worker, which renews its lease: it may be longer than the visibility timeout. What a killed worker
held comes back sooner, without its wait."""
BROKER_WAITS = 0.5, 8.0
"""Seconds of the first and of the longest wait for a broker that does not answer or is full."""
ESCAPE_WAIT = 0.5
"""Seconds before a message goes back whose task met something unforeseen: one that meets it each time must not keep a processor busy."""

MAX_DETAIL = 500
"""Characters that are kept of why an item failed."""

stopping = threading.Event()
"""Set when the worker shuts down: who waits for the broker then hands its message back."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Guard:
    """What the tasks of one process share to keep it, and each other, well."""

    quarantine: Quarantine
    outage: Outage
    watchdog: Watchdog
    tracing: Tracing | None = None


class StageTask(Task):  # type: ignore[misc] # Celery ships no types
    """Runs its stage on one item. The message is the item; the chain carries the stages that follow.

    Whatever happens, the item ends in one of three ways: its next stage is queued, its failure is recorded, or its message goes back.
    """

    abstract = True
    # Failures of items are data: one quiet line in the log, a red row in Flower, no traceback.
    throws = (VitrinaError,)
    ignore_result = True
    # Attempts are counted here, by the settings; Celery would give up after three.
    max_retries = None

    stage: StageName
    runner: Runner
    guard: Guard

    def run(self, message: dict[str, Any]) -> None:
        """Bring one item through the stage and queue the next. Raises `VitrinaError` for what is recorded, and Celery's own."""
        try:
            self._bring(message)
        except (VitrinaError, TaskPredicate):
            raise
        except BaseException as error:
            # Celery would acknowledge the message of most, and never settle that of `MemoryError` and `SystemExit`, whose slot in the pool
            # is then lost for good.
            log.exception("the message goes back", extra={"action": "error", "stage": self.stage})
            stopping.wait(ESCAPE_WAIT)
            raise Reject(f"{type(error).__name__}: {error}", requeue=True) from error

    def _bring(self, message: dict[str, Any]) -> None:
        try:
            item = Item.from_wire(message)
        except MessageError as error:
            # Without a job there is nowhere to record it.
            log.error("message refused: %s", error, extra={"action": "refused", "stage": self.stage})  # noqa: TRY400 - expected, no traceback
            raise
        metrics.waited(self.stage, self.request.get("published"))
        try:
            self._run(item)
        except VitrinaError as error:
            if isinstance(error, JobForgottenError):
                log.error("dropped: %s", error, extra=self._fields(item, "dropped"))  # noqa: TRY400 - expected, no traceback
                raise
            if error.retryable and self._attempts_left():
                self._again(item, error)
            self._fail(item, error)
            raise
        self._pass_on(item)

    def _run(self, item: Item) -> None:
        """Run the stage. Raises `VitrinaError` for whatever went wrong, and nothing else but Celery's own."""
        progress = self.runner.progress(item.job)
        try:
            with self.guard.watchdog.task():
                self._unless_stopping()
                starts, state = self._patiently(item, lambda: progress.attempt(self.stage, item.index))
                if state == "cancelled":
                    raise JobCancelledError("the job was cancelled")  # noqa: TRY301 - recorded by the caller like any other
                if starts == 1:
                    with self.guard.quarantine.among_others():
                        self._work(item)
                else:
                    self._work_alone(item, progress)
        except (TaskPredicate, VitrinaError):
            raise
        except BaseException as error:
            if isinstance(error, (StoppedError, HandedBackError)) or (
                stopping.is_set() and isinstance(error, (SystemExit, KeyboardInterrupt))
            ):
                # It has not begun, not got far, or was told to end: another worker takes it, and nothing speaks against it.
                self._patiently(item, lambda: progress.clear_attempts(self.stage, item.index))
                raise Reject("the worker is shutting down", requeue=True) from error
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"not enough memory for this photo: {error}") from error
            log.exception("stage failed unexpectedly", extra=self._fields(item, "error"))
            raise StageFailedError(f"{type(error).__name__}: {error}") from error

    def _unless_stopping(self) -> None:
        if stopping.is_set():
            raise StoppedError

    def _work_alone(self, item: Item, progress: Progress) -> None:
        """Run a suspect: it, or one beside it, may have killed a worker. Raises `WorkerLostError` for one that did so alone too often."""
        with self.guard.quarantine.alone():
            deaths = self._patiently(item, lambda: progress.attempt_alone(self.stage, item.index)) - 1
            if deaths >= self.runner.settings.max_deaths:
                msg = f"started {deaths} times alone and never ended: the photo may exhaust memory or hang the model"
                raise WorkerLostError(msg)
            self._work(item, alone=True)

    def _work(self, item: Item, *, alone: bool = False) -> None:
        """Run the stage, or put the item off while the storage is down for the whole job."""
        outage = self.guard.outage
        wait = outage.wait(item.job)
        if wait:
            self._put_off(item, wait)
        deadline = math.inf
        if alone:
            # The time of one batch, where it is the shorter: all others wait meanwhile.
            deadline = self.runner.settings.batch_deadline
            self._load(item)
        with self.guard.watchdog.work(deadline):
            down = self._finds_storage_down(item)
        if down:
            self._put_off(item, outage.wait(item.job))

    def _load(self, item: Item) -> None:
        """Load the item's model, which a fresh process has before it and which is no time of the item's; what goes wrong its run meets again."""
        with self.guard.watchdog.loading(), suppress(VitrinaError):
            self._patiently(item, lambda: self.runner.load(item))

    def _finds_storage_down(self, item: Item) -> bool:
        """Run the stage, and tell whether that failed since the storage is down for the whole job."""
        outage = self.guard.outage
        try:
            self._patiently(item, lambda: self._run_stage(item))
        except ObjectMissingError:
            raise
        except StorageError as error:
            if outage.failed(item.job, item.index, error, answers=lambda: self.runner.storage_answers(item.job)):
                return True
            raise
        outage.worked(item.job)
        return False

    def _run_stage(self, item: Item) -> None:
        if self.guard.tracing is None:
            self.runner.run(item)
        else:
            with self.guard.tracing.stage(self.stage, item) as phases:
                phases.update(self.runner.run(item).seconds)

    def _patiently(self, item: Item, do: Callable[[], Answer]) -> Answer:
        """Do something that needs the broker, however long that takes: without it nothing can be recorded, and nothing may be lost."""
        wait, longest = BROKER_WAITS
        while True:
            try:
                return do()
            except (BrokerError, OperationalError) as error:
                if stopping.is_set():
                    raise Reject(str(error), requeue=True) from error
                log.warning("waiting for the broker: %s", error, extra=self._fields(item, "wait"))
                self.guard.watchdog.rest()
                stopping.wait(wait * random.uniform(0.5, 1))  # noqa: S311 - not a secret
                wait = min(2 * wait, longest)

    def _pass_on(self, item: Item) -> None:
        """Queue the next stage. Celery would do it after the task, and give the item up when a full broker refuses the message."""
        chain = self.request.chain
        if chain:
            step = self.app.signature(chain[-1])
            self._patiently(item, lambda: step.apply_async(chain=chain[:-1]))
            self.request.chain = None

    def _attempts_left(self) -> bool:
        return int(self.request.retries) + 1 < self.runner.settings.max_attempts

    def _again(self, item: Item, error: VitrinaError) -> NoReturn:
        # Full jitter: workers that failed together do not come back together.
        backoff = self.runner.settings.retry_base * 2 ** int(self.request.retries)
        countdown = random.uniform(0.5, 1) * min(MAX_BACKOFF, backoff)  # noqa: S311 - not a secret
        metrics.count(self.stage, "retried", error.reason)
        log.warning("again in %.1f s: %s", countdown, error, extra=self._fields(item, "retry"))
        self._send_again(item, countdown, error)

    def _put_off(self, item: Item, seconds: float) -> NoReturn:
        """Send the item again after a while. That is no try of it, and its thread is free for other jobs meanwhile."""
        self.request.retries -= 1
        self._send_again(item, seconds * random.uniform(1, 1.5))  # noqa: S311 - not a secret

    def _send_again(self, item: Item, countdown: float, error: VitrinaError | None = None) -> NoReturn:
        progress = self.runner.progress(item.job)
        # This start has ended: only starts that never end speak against the photo.
        self._patiently(item, lambda: progress.clear_attempts(self.stage, item.index))
        try:
            raise self.retry(exc=error, countdown=countdown, argsrepr=self.request.argsrepr)
        except Reject as reject:
            # The broker refused the copy (full, gone). Celery would acknowledge and forget; the message must stay.
            raise Reject(reject.reason, requeue=True) from error

    def _fail(self, item: Item, error: VitrinaError) -> None:
        """Record the failure; it needs the broker alone, so that it works whatever else is broken."""
        # One line, as long as a person reads: libraries write pages, and a fault that all photos have is kept for each.
        failure = Failure(item.index, item.key, self.stage, error.reason, " ".join(str(error).split())[:MAX_DETAIL])
        metrics.count(self.stage, "failed", error.reason)
        log.warning(
            "failed %s: %s", item.key, failure.detail, extra=self._fields(item, "failed") | {"reason": error.reason}
        )
        progress = self.runner.progress(item.job)
        self._patiently(item, lambda: progress.fail(failure))
        self._patiently(item, lambda: progress.clear_attempts(self.stage, item.index))

    def _fields(self, item: Item, action: str) -> dict[str, Any]:
        return {"action": action, "job": item.job, "key": item.key, "stage": self.stage}


def register(app: Any, runners: dict[StageName, Runner], guard: Guard) -> None:
    """Register a task per stage on a Celery application; its name is the stage's."""
    for stage, runner in runners.items():
        members = {"name": stage, "stage": stage, "runner": runner, "guard": guard}
        kind = type(f"{stage.title()}Task", (StageTask,), members)
        app.register_task(kind())
