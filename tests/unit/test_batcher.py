"""The batcher's promises: full batches, order, isolation of the bad item, learned sizes, a watchdog."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

import cv2
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from shared.errors import OutOfMemoryError, UnreadablePictureError
from workers.batcher import Batcher, HandedBackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Gate:
    """A model that doubles numbers, holds its first batch until told, and fails as asked."""

    def __init__(self, fail: Callable[[Sequence[int]], None] = lambda _: None) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.entered = threading.Event()
        self._fail = fail

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.entered.set()
        assert self.open.wait(10)
        self.batches.append(list(batch))
        self._fail(batch)
        return [2 * number for number in batch]


class Activations:
    """What a model allocates on its way."""


def wrapped() -> Exception:
    """Return an error as libraries meet it and wrap it: with its own way through them."""
    activations = Activations()
    try:
        {}[activations]
    except KeyError as error:
        return error
    raise AssertionError


@pytest.fixture
def make() -> Iterator[Callable[..., Batcher[int, int]]]:
    made: list[Batcher[int, int]] = []

    def build(model: Gate, **options: object) -> Batcher[int, int]:
        settings = {"bucket": lambda _: 0, "max_batch": 4, "deadline": 600.0} | options
        made.append(Batcher(model, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for batcher in made:
        batcher.close()


def held(batcher: Batcher[int, int], model: Gate, numbers: Sequence[int]) -> list[object]:
    """Submit one input, and the others while the model is busy with it; then let it run."""
    futures = [batcher.submit(numbers[0])]
    assert model.entered.wait(10)
    futures += [batcher.submit(number) for number in numbers[1:]]
    model.open.set()
    return [future.exception(10) or future.result() for future in futures]


def test_inputs_that_wait_together_run_together_and_answers_keep_their_order(
    make: Callable[..., Batcher[int, int]],
) -> None:
    """What queued up during one batch becomes the next ones, as large as allowed."""
    model = Gate()
    assert held(make(model), model, range(10)) == [2 * n for n in range(10)]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_batch_never_mixes_buckets(make: Callable[..., Batcher[int, int]]) -> None:
    """Pictures of different shapes cannot share a tensor."""
    model = Gate()
    held(make(model, bucket=lambda n: n % 2), model, range(9))
    assert all(len({n % 2 for n in batch}) == 1 for batch in model.batches)


def test_only_the_bad_item_of_a_batch_fails(make: Callable[..., Batcher[int, int]]) -> None:
    """A failing batch is bisected, so that its neighbours finish."""

    def fail(batch: Sequence[int]) -> None:
        if 3 in batch:
            raise ValueError("three")

    model = Gate(fail)
    answers = held(make(model), model, range(6))
    assert [a for i, a in enumerate(answers) if i != 3] == [0, 2, 4, 8, 10]
    assert isinstance(answers[3], ValueError)


def test_out_of_memory_halves_the_batch_and_is_remembered(make: Callable[..., Batcher[int, int]]) -> None:
    """The next batches start at the size that fitted."""

    def fail(batch: Sequence[int]) -> None:
        if len(batch) > 2:
            raise MemoryError

    model = Gate(fail)
    assert held(make(model), model, range(13)) == [2 * n for n in range(13)]
    assert max(len(batch) for batch in model.batches[2:]) == 2


def test_a_halved_batch_has_the_memory_of_the_whole_one(make: Callable[..., Batcher[int, int]]) -> None:
    """What the model had allocated until it failed is gone before it is tried again."""
    left: list[weakref.ref[Activations]] = []
    held_again: list[bool] = []

    def fail(batch: Sequence[int]) -> None:
        held_again.append(any(ref() is not None for ref in left))
        activations = Activations()
        left.append(weakref.ref(activations))
        if len(batch) > 1:
            raise MemoryError from wrapped()

    model = Gate(fail)
    assert held(make(model), model, range(5)) == [2 * n for n in range(5)]
    assert len(held_again) > 5
    assert not any(held_again)


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Failed to allocate memory for requested buffer of size 1073741824",
        "OpenCV(4.12.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 4000000000 bytes",
    ],
)
@pytest.mark.parametrize(
    "kind", [RuntimeError, onnxruntime_errors.Fail, onnxruntime_errors.RuntimeException, cv2.error]
)
def test_memory_that_is_told_in_words_alone_halves_the_batch(
    make: Callable[..., Batcher[int, int]], said: str, kind: type[Exception]
) -> None:
    """Libraries raise errors of their own, or of no kind at all."""

    def fail(batch: Sequence[int]) -> None:
        if len(batch) > 1:
            raise kind(said)

    model = Gate(fail)
    batcher = make(model)
    assert held(batcher, model, range(5)) == [2 * n for n in range(5)]
    batcher.submit(9).result(60)
    assert isinstance(make(lambda _: fail([1, 2])).submit(1).exception(60), OutOfMemoryError)


def test_a_lost_device_ends_the_worker_rather_than_fail_its_queue(make: Callable[..., Batcher[int, int]]) -> None:
    """After an illegal access every later call fails as well; here the end is only observed."""
    AcceleratorError = type("AcceleratorError", (RuntimeError,), {})  # torch's, known by its name  # noqa: N806 - a class
    told: list[str] = []

    def fail(_: Sequence[int]) -> None:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    model = Gate(fail)
    held(make(model, on_wedged=lambda _, what: told.append(what)), model, [1])
    assert "illegal memory access" in told[0]


def test_one_picture_that_does_not_fit_alone_is_out_of_memory(make: Callable[..., Batcher[int, int]]) -> None:
    """The task can then retry it when more is free."""

    def fail(_: Sequence[int]) -> None:
        raise MemoryError

    model = Gate(fail)
    assert all(isinstance(a, OutOfMemoryError) for a in held(make(model), model, range(3)))


def test_a_model_that_answers_too_few_outputs_fails_rather_than_shifting_them(
    make: Callable[..., Batcher[int, int]],
) -> None:
    """One photo's mask must never become another's."""
    model = Gate()
    batcher = make(lambda batch: list(batch)[1:] if len(batch) > 1 else [2 * n for n in batch])
    assert [batcher.submit(n).result(10) for n in range(5)] == [0, 2, 4, 6, 8]
    assert model.batches == []


def test_an_item_error_reaches_its_own_item(make: Callable[..., Batcher[int, int]]) -> None:
    """Errors keep their type on the way to the task."""

    def fail(batch: Sequence[int]) -> None:
        if 1 in batch:
            raise UnreadablePictureError("no")

    model = Gate(fail)
    answers = held(make(model), model, range(3))
    assert isinstance(answers[1], UnreadablePictureError)
    assert [answers[0], answers[2]] == [0, 4]


def test_a_batch_past_its_deadline_is_reported(make: Callable[..., Batcher[int, int]]) -> None:
    """A wedged device ends the worker; here the end is only observed."""
    wedged = threading.Event()
    model = Gate()
    batcher = make(model, deadline=0.05, on_wedged=lambda _: wedged.set())
    future = batcher.submit(1)
    assert wedged.wait(10)
    model.open.set()
    assert future.result(10) == 2


def test_each_part_of_a_batch_that_is_split_has_the_deadline_to_itself(make: Callable[..., Batcher[int, int]]) -> None:
    """A worker that looks for the bad item among eight is slow, not wedged."""
    wedged: list[float] = []

    def fail(batch: Sequence[int]) -> None:
        time.sleep(0.2)
        if 3 in batch:
            raise ValueError(batch)

    model = Gate(fail)
    batcher = make(model, max_batch=8, deadline=1.0, on_wedged=lambda seconds, *_: wedged.append(seconds))
    answers = held(batcher, model, [0, *range(1, 9)])
    assert sum(isinstance(answer, ValueError) for answer in answers) == 1
    assert len(model.batches) >= 8  # 1.6 s and more
    assert not wedged


def test_a_worker_that_shuts_down_finishes_the_batch_that_runs_and_no_other(
    make: Callable[..., Batcher[int, int]],
) -> None:
    """What waits is handed back, and what was still being prepared as well: its supervisor waits for one batch."""
    model = Gate()
    batcher = make(model)
    runs = batcher.submit(1)
    assert model.entered.wait(10)
    waits = batcher.submit(2)
    batcher.hand_back()
    assert isinstance(waits.exception(10), HandedBackError)
    with pytest.raises(HandedBackError):
        batcher.submit(3)
    model.open.set()
    assert runs.result(10) == 2
    batcher.close()
    assert model.batches == [[1]]
