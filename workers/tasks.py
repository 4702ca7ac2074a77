"""The three Celery tasks: thin adapters that turn what a stage raised into retry, failure record or success."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, NoReturn

from celery import Task
from celery.exceptions import Reject, Retry

from shared.errors import JobNotFoundError, MessageError, StageFailedError, VitrinaError, WorkerLostError
from shared.messages import Item
from shared.progress import Failure
from workers import metrics

if TYPE_CHECKING:
    from shared.keys import StageName
    from workers.runner import OpenJob, Runner

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0
"""Seconds; well under the visibility timeout, since a waiting retry is held by the worker unacknowledged."""


class StageTask(Task):  # type: ignore[misc] # Celery ships no types
    """Runs its stage on one item. The message is the item; the chain carries the stages that follow."""

    abstract = True
    # Failures of items are data: one quiet line in the log, a red row in Flower, no traceback.
    throws = (VitrinaError,)
    ignore_result = True

    stage: StageName
    runner: Runner

    def run(self, message: dict[str, Any]) -> None:
        """Bring one item through the stage."""
        try:
            item = Item.from_wire(message)
        except MessageError as error:
            # Without a job there is nowhere to record it.
            log.error("message refused: %s", error, extra={"action": "refused", "stage": self.stage})  # noqa: TRY400 - expected, no traceback
            raise
        try:
            self._run(item)
        except (Retry, Reject, VitrinaError):
            raise
        except BaseException as error:
            # MemoryError, SystemExit and KeyboardInterrupt in a task would each leak a slot of the threads pool for ever.
            log.exception("stage failed unexpectedly", extra=self._fields(item, "error"))
            raise self._end(item, StageFailedError(f"{type(error).__name__}: {error}")) from error

    def _run(self, item: Item) -> None:
        try:
            opened = self.runner.open(item.job)
            attempts = opened.progress.attempt(self.stage, item.index)
            if attempts > self.runner.settings.max_attempts:
                msg = f"started {attempts - 1} times and never ended: the photo may exhaust memory or hang the model"
                raise WorkerLostError(msg)
            self.runner.run(item)
        except JobNotFoundError as error:
            log.error("dropped: %s", error, extra=self._fields(item, "dropped"))  # noqa: TRY400 - expected, no traceback
            raise
        except VitrinaError as error:
            if error.retryable and self._attempts_left():
                self._again(item, error)
            raise self._end(item, error) from None
        opened.progress.clear_attempts(self.stage, item.index)

    def _attempts_left(self) -> bool:
        return int(self.request.retries) + 1 < self.runner.settings.max_attempts

    def _again(self, item: Item, error: VitrinaError) -> NoReturn:
        # Full jitter: workers that failed together do not come back together.
        backoff = self.runner.settings.retry_base * 2 ** int(self.request.retries)
        countdown = random.uniform(0.5, 1) * min(MAX_BACKOFF, backoff)  # noqa: S311 - not a secret
        metrics.count(self.stage, "retried", error.reason)
        log.warning("again in %.1f s: %s", countdown, error, extra=self._fields(item, "retry"))
        try:
            raise self.retry(exc=error, countdown=countdown, max_retries=None)
        except Reject as reject:
            # The broker refused the copy (full, gone). Celery would acknowledge and forget; the message must stay.
            raise Reject(reject.reason, requeue=True) from error

    def _end(self, item: Item, error: VitrinaError) -> VitrinaError:
        """Record the failure and return the error to raise, which stops the chain."""
        failure = Failure(item.index, item.key, self.stage, error.reason, str(error))
        metrics.count(self.stage, "failed", error.reason)
        log.warning("failed %s: %s", item.key, error, extra=self._fields(item, "failed") | {"reason": error.reason})
        try:
            opened: OpenJob = self.runner.open(item.job)
            opened.progress.fail(failure)
            opened.progress.clear_attempts(self.stage, item.index)
        except VitrinaError as unrecorded:
            # Unrecorded is lost: the message goes back to the queue and is tried again.
            raise Reject(str(unrecorded), requeue=True) from error
        return error

    def _fields(self, item: Item, action: str) -> dict[str, Any]:
        return {"action": action, "job": item.job, "key": item.key, "stage": self.stage}


def register(app: Any, runners: dict[StageName, Runner]) -> None:
    """Register a task per stage on a Celery application; its name is the stage's."""
    for stage, runner in runners.items():
        kind = type(f"{stage.title()}Task", (StageTask,), {"name": stage, "stage": stage, "runner": runner})
        app.register_task(kind())
