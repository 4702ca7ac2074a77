"""The batcher: many task threads hand in single inputs, one thread runs the model on batches."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic

from shared.errors import ItemError, OutOfMemoryError
from workers.stage import Input, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

log = logging.getLogger(__name__)

LINGER = 0.1
"""How long a free model waits for a fuller batch, as a part of the measured batch time: more would cost more than it wins."""
WEDGED_STATUS = 70
"""Exit status of a worker whose model does not come back (EX_SOFTWARE)."""


def exit_wedged(seconds: float, what: str = "a batch is past its deadline, the device is wedged") -> None:
    """End the process at once, with every thread's stack in the log, so that its supervisor starts a healthy one."""
    log.critical("%s: exiting", what, extra={"action": "wedged", "seconds": round(seconds, 1)})
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(WEDGED_STATUS)


_SAID_OF_MEMORY = (
    "can't allocate memory",  # torch's allocator on a CPU
    "CUDA error: out of memory",  # the CUDA runtime
    "_ALLOC_FAILED",  # its libraries: cuBLAS, cuDNN
    "Failed to allocate memory",  # ONNX Runtime
    "Insufficient memory",  # OpenCV
)


class BatcherClosedError(RuntimeError):
    """The batcher takes nothing more: its model is being unloaded."""


class HandedBackError(RuntimeError):
    """The worker shuts down before this input came into a batch."""


class Pending(Future[Output]):
    """An input's answer to come, and its share of the batch's time once it has."""

    seconds: float = 0.0


class Batcher(Generic[Input, Output]):
    """Runs `infer` in one thread of its own on batches of inputs of equal bucket.

    When the model is free it takes what waits, up to `max_batch`, oldest bucket first. Out of memory: the batch is split and the smaller
    size remembered for that bucket. A lost device ends the process, as one that does not come back does. Any other error: the batch is
    bisected until only the bad input fails.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[Input]], Sequence[Output]],
        bucket: Callable[[Input], Hashable],
        *,
        max_batch: int,
        deadline: float,
        on_wedged: Callable[..., None] = exit_wedged,
    ) -> None:
        self._infer = infer
        self._bucket = bucket
        self._max_batch = max_batch
        self._deadline = deadline
        self._on_wedged = on_wedged
        self._waiting: dict[Hashable, deque[tuple[Input, Pending[Output]]]] = {}
        self._limits: dict[Hashable, int] = {}
        self._batch_seconds = 0.0
        self._began: float | None = None
        self._closed = False
        self._given_up = False
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)
        self._thread.start()
        self._watchdog = threading.Thread(target=self._watch, name="batcher-watchdog", daemon=True)
        self._watchdog.start()

    def submit(self, item: Input) -> Pending[Output]:
        """Queue one input. The future ends with its output or with what went wrong for it alone. Raises `BatcherClosedError`, `HandedBackError`."""
        future: Pending[Output] = Pending()
        bucket = self._bucket(item)
        with self._changed:
            if self._given_up:
                raise HandedBackError
            if self._closed:
                raise BatcherClosedError
            self._waiting.setdefault(bucket, deque()).append((item, future))
            self._changed.notify_all()
        return future

    def hand_back(self) -> None:
        """Give up what waits and is in no batch yet, and whatever comes from now on: it ends with `HandedBackError`."""
        with self._changed:
            self._given_up = True
            waiting = [future for queue in self._waiting.values() for _, future in queue]
            self._waiting.clear()
        for future in waiting:
            future.set_exception(HandedBackError())

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        # Only now: the last batches may wedge like any other.
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._watchdog.join()

    def _loop(self) -> None:
        while True:
            taken = self._take()
            if taken is None:
                return
            bucket, batch = taken
            start = time.monotonic()
            self._run(bucket, batch)
            del taken, batch  # the next may be long in coming, and until then they would be in memory
            self._began = None
            seconds = time.monotonic() - start
            # An even-handed average: the linger follows load and picture sizes within a few batches.
            self._batch_seconds = seconds if not self._batch_seconds else 0.5 * (self._batch_seconds + seconds)

    def _take(self) -> tuple[Hashable, list[tuple[Input, Pending[Output]]]] | None:
        with self._changed:
            while True:
                while not self._waiting:
                    if self._closed:
                        return None
                    self._changed.wait()
                # Dicts keep insertion order: the first bucket is the one that has waited longest.
                bucket = next(iter(self._waiting))
                limit = self._limits.get(bucket, self._max_batch)
                self._linger(bucket, limit)
                queue = self._waiting.pop(bucket, None)
                if queue is None:
                    continue  # handed back meanwhile
                batch = [queue.popleft() for _ in range(min(limit, len(queue)))]
                if queue:  # back in at the end, so that no bucket starves another
                    self._waiting[bucket] = queue
                return bucket, batch

    def _linger(self, bucket: Hashable, limit: int) -> None:
        until = time.monotonic() + LINGER * self._batch_seconds
        while len(self._waiting.get(bucket, ())) < limit and not self._closed:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _run(self, bucket: Hashable, batch: list[tuple[Input, Pending[Output]]]) -> None:
        start = self._began = time.monotonic()  # each part of a batch that is split has the deadline to itself
        try:
            outputs = self._infer([item for item, _ in batch])
            if len(outputs) != len(batch):
                raise RuntimeError(f"the model answered {len(outputs)} outputs to {len(batch)} inputs")  # noqa: TRY301 - treated as any fault of the model
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to an item, never to this thread
            failure = forgotten(error) if is_out_of_memory(error) else error
        else:
            self._answer(batch, outputs, time.monotonic() - start)
            return
        # Not in the handler above: while an error is handled, all that its batch had allocated is held.
        self._recover(bucket, batch, failure)

    @staticmethod
    def _answer(batch: list[tuple[Input, Pending[Output]]], outputs: Sequence[Output], seconds: float) -> None:
        share = seconds / len(batch)
        for (_, future), output in zip(batch, outputs, strict=True):
            future.seconds = share
            future.set_result(output)

    def _recover(self, bucket: Hashable, batch: list[tuple[Input, Pending[Output]]], error: Exception) -> None:
        if is_device_lost(error):
            # Every photo would fail from here on, and none for a fault of its own.
            self._on_wedged(time.monotonic() - (self._began or time.monotonic()), f"the device is lost ({error})")
        out_of_memory = is_out_of_memory(error)
        if len(batch) == 1:
            failure = OutOfMemoryError(f"one picture alone does not fit: {error}") if out_of_memory else error
            batch[0][1].set_exception(failure)
            return
        half = len(batch) // 2
        if out_of_memory:
            self._limits[bucket] = half
            log.warning("out of memory: batch halved", extra={"action": "batch_halved", "batch": half})
        elif not isinstance(error, ItemError):
            log.warning("batch failed: looking for the bad item", extra={"action": "bisect", "batch": len(batch)})
        self._run(bucket, batch[:half])
        self._run(bucket, batch[half:])

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._ended, timeout=min(1.0, self._deadline / 4)):
                    break
            began = self._began
            if began is not None and time.monotonic() - began > self._deadline:
                self._on_wedged(time.monotonic() - began)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a model ran out of the machine's or the device's memory."""
    # torch is not imported here; its error is known by name, and where it has none of its own by what it says.
    return (
        isinstance(error, (MemoryError, OutOfMemoryError))
        or type(error).__name__ == "OutOfMemoryError"
        or any(said in str(error) for said in _SAID_OF_MEMORY)
    )


def is_device_lost(error: BaseException) -> bool:
    """Tell whether a GPU has failed in a way that no later call of this process gets over, such as an illegal access."""
    return type(error).__name__ == "AcceleratorError" and not is_out_of_memory(error)


def forgotten(error: Exception) -> Exception:
    """Take an error's way through the model from it, which holds all that was allocated there."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
