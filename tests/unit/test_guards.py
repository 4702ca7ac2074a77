"""What keeps a worker and its neighbours well: quarantine, outages, memory, the watchdog and the probe."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import pytest

from producer.embedded import free_port
from shared.errors import StorageError, StorageReadOnlyError, StorageRefusedError, UsageError
from shared.pictures import encode_png, pixels
from shared.probe import Probe
from workers.memory import Budget, machine_bytes
from workers.outage import ENOUGH, Outage
from workers.quarantine import Quarantine, StoppedError
from workers.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


def wait_until(true: Callable[[], object]) -> None:
    """Wait for something to come true, by a count: the clock may be one of the test's own."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it never came to pass")


class Side:
    """A thread that enters something and stays until it is let go."""

    def __init__(self, enter: Callable[[], AbstractContextManager[None]]) -> None:
        self.inside = threading.Event()
        self.leave = threading.Event()
        self.stopped = False
        self._enter = enter
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._enter():
                self.inside.set()
                self.leave.wait(60)
        except StoppedError:
            self.stopped = True

    def end(self) -> None:
        self.leave.set()
        self._thread.join(30)


def test_a_suspect_runs_alone_and_before_those_that_come_later() -> None:
    """It waits for those that run; who comes after it waits for it."""
    quarantine = Quarantine(lambda: False)
    first, second = Side(quarantine.among_others), Side(quarantine.among_others)
    assert first.inside.wait(30)
    assert second.inside.wait(30)
    suspect = Side(quarantine.alone)
    wait_until(lambda: quarantine._waiting)
    later = Side(quarantine.among_others)
    first.end()
    assert not suspect.inside.wait(0.3)
    assert not later.inside.is_set()
    second.end()
    assert suspect.inside.wait(30)
    assert not later.inside.wait(0.3)
    suspect.end()
    assert later.inside.wait(30)
    later.end()


def test_who_waits_leaves_when_the_worker_stops() -> None:
    """Its message goes back; nobody else is kept waiting for it."""
    stopping = threading.Event()
    quarantine = Quarantine(stopping.is_set)
    running = Side(quarantine.among_others)
    assert running.inside.wait(30)
    suspect = Side(quarantine.alone)
    wait_until(lambda: quarantine._waiting)
    stopping.set()
    suspect.end()
    assert suspect.stopped
    running.end()


def yes() -> bool:
    return True


def no() -> bool:
    return False


def test_one_bad_photo_is_no_outage() -> None:
    """However often it fails; nor are several when others work, or when they are of several jobs."""
    outage = Outage(patience=60)
    assert not any(outage.failed("job", 1, StorageError("x"), answers=yes) for _ in range(10))
    for index in range(10):
        assert not outage.failed("job", index, StorageError("x"), answers=yes)
        outage.worked("job")
    for index in range(10):
        assert not outage.failed(f"job {index}", index, StorageError("x"), answers=yes)
    assert not outage.down


def test_a_storage_that_does_not_answer_is_an_outage_at_once() -> None:
    """However few photos are left to find out; it is asked once."""
    outage = Outage(patience=60)
    assert outage.failed("job", 1, StorageError("x"), answers=no)
    assert outage.down
    assert outage.failed("job", 1, StorageError("x"), answers=lambda: pytest.fail("asked again"))


def test_a_storage_that_takes_nothing_is_an_outage_at_once() -> None:
    """It answers, and what it refuses is no photo's fault; a refusal of one alone is."""
    outage = Outage(patience=60)
    assert not outage.failed("job", 1, StorageRefusedError("x"), answers=yes)
    assert outage.failed("job", 1, StorageReadOnlyError("x"), answers=lambda: pytest.fail("asked"))
    assert outage.down


def test_in_an_outage_one_photo_tries_and_the_others_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it works again, and only those of the same job: another may have another storage."""
    now = 0.0
    monkeypatch.setattr("workers.outage.time.monotonic", lambda: now)
    outage = Outage(patience=60)
    told = [outage.failed("job", index, StorageError("x"), answers=yes) for index in range(ENOUGH)]
    assert told == [*[False] * (ENOUGH - 1), True]
    assert outage.down
    assert outage.wait("another job") == 0
    assert outage.wait("job") > 0
    tries = 0
    while now < 59:
        now += 0.1
        if not outage.wait("job"):
            tries += 1
            assert outage.failed("job", 7, StorageError("x"), answers=yes)
    assert 5 < tries < 12
    assert outage.wait("job") <= 15
    outage.worked("job")
    assert outage.wait("job") == 0
    assert not outage.down


def test_an_outage_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience items try, and fail; when none has for long, as after a cancellation, nothing is down."""
    now = 0.0
    monkeypatch.setattr("workers.outage.time.monotonic", lambda: now)
    outage = Outage(patience=60)
    for index in range(ENOUGH):
        outage.failed("job", index, StorageError("x"), answers=yes)
    now = 61
    assert outage.wait("job") == outage.wait("job") == 0
    assert not outage.failed("job", 9, StorageError("x"), answers=yes)
    assert outage.down
    now += 601
    assert not outage.down


def test_large_photos_take_turns() -> None:
    """What does not fit waits; one that never fits runs alone."""
    budget = Budget(100, lambda: False)
    small, large = Side(lambda: budget.taking(60)), Side(lambda: budget.taking(60))
    wait_until(lambda: small.inside.is_set() or large.inside.is_set())
    time.sleep(0.3)
    assert small.inside.is_set() != large.inside.is_set()
    small.leave.set()
    large.leave.set()
    assert small.inside.wait(30)
    assert large.inside.wait(30)
    small.end()
    large.end()
    assert budget.peak == 60
    with budget.taking(1000):
        assert budget.peak == 1000


def test_a_large_photo_is_not_overtaken_for_ever() -> None:
    """Small ones that come after it wait behind it, though there is room for them."""
    budget = Budget(100, lambda: False)
    small = Side(lambda: budget.taking(40))
    assert small.inside.wait(30)
    large = Side(lambda: budget.taking(80))
    wait_until(lambda: budget._arriving)
    later = Side(lambda: budget.taking(40))
    assert not later.inside.wait(0.3)
    small.end()
    assert large.inside.wait(30)
    assert not later.inside.is_set()
    large.end()
    assert later.inside.wait(30)
    later.end()


def test_files_in_memory_never_wait_for_each_other() -> None:
    """Each has its own and wants more than there is room for: they work one after the other."""
    budget = Budget(100, lambda: False)
    fetched, alone, two_at_once = threading.Barrier(4), threading.Lock(), threading.Event()

    @contextmanager
    def item() -> Iterator[None]:
        with budget.taking(25) as share:
            fetched.wait(60)
            budget.work(share, 25, 70)
            if not alone.acquire(blocking=False):
                two_at_once.set()
            time.sleep(0.05)
            alone.release()
            budget.keep(share, 25)
            yield

    items = [Side(item) for _ in range(4)]
    for side in items:
        assert side.inside.wait(30)
    assert not two_at_once.is_set()
    assert budget.peak == 4 * 25 + 70
    for side in items:
        side.end()
    assert budget._taken == 0


def test_files_in_memory_go_before_new_ones() -> None:
    """Though there is room for those: what is read already could not end behind them."""
    budget = Budget(100, lambda: False)

    @contextmanager
    def working() -> Iterator[None]:
        with budget.taking(10) as share:
            budget.work(share, 10, 50)
            yield

    first = Side(working)
    assert first.inside.wait(30)
    second = Side(working)
    wait_until(lambda: budget._growing)
    later = Side(lambda: budget.taking(20))
    assert not later.inside.wait(0.3)
    first.end()
    assert second.inside.wait(30)
    assert later.inside.wait(30)
    second.end()
    later.end()


def test_a_photo_tells_its_pixels_before_it_is_decoded() -> None:
    """What cannot be read has none: decoding it says why."""
    from PIL import Image  # noqa: PLC0415 - used here alone

    data = encode_png(Image.new("RGB", (40, 30)))
    assert pixels(data, 10_000) == 1200
    assert pixels(data, 100) == 0
    assert pixels(b"no picture", 10_000) == pixels(b"", 10_000) == 0
    assert machine_bytes() > 100_000_000


class Watched:
    """A watchdog that notes what it would have ended the process for."""

    def __init__(self, *, waiting: bool, heartbeat: Path | None = None) -> None:
        self.said: list[str] = []
        self.dog = Watchdog(
            task_deadline=0.3,
            stall_deadline=0.4,
            waiting=lambda: waiting,
            heartbeat=heartbeat,
            on_wedged=lambda what, _: self.said.append(what),
        )

    def __enter__(self) -> Self:
        self.dog.start()
        self.dog.expect_tasks()
        return self

    def __exit__(self, *_: object) -> None:
        self.dog.close()


def test_work_past_its_deadline_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting does not count as work, and neither does what was waited for in between."""
    clock = [0.0]
    monkeypatch.setattr("workers.watchdog.time.monotonic", lambda: clock[0])

    def said_after(seconds: float) -> list[str]:
        clock[0] += seconds
        for _ in range(2):  # it has looked once for certain when it has looked twice
            clock[0] += 0.001
            wait_until(lambda: watched.dog._turned == clock[0])
        return watched.said

    with Watched(waiting=False) as watched, watched.dog.task():
        assert said_after(0.6) == []
        with watched.dog.work():
            assert said_after(0.2) == []
            watched.dog.rest()
            assert said_after(0.2) == []
            assert said_after(0.2)[0] == "a task is past its deadline"


@pytest.mark.parametrize("waiting", [True, False])
def test_a_worker_that_takes_nothing_ends_if_there_is_work(*, waiting: bool) -> None:
    """An idle worker before an empty queue is well."""
    with Watched(waiting=waiting) as watched:
        if waiting:
            wait_until(lambda: watched.said)
        else:
            time.sleep(0.8)
            assert not watched.said


def test_who_does_not_take_tasks_yet_need_not_take_any() -> None:
    """A model that takes long to load, or a broker that is away, is no wedged worker."""
    watched = Watched(waiting=True)
    watched.dog.start()
    try:
        time.sleep(0.8)
        assert not watched.said
        watched.dog.expect_tasks()
        wait_until(lambda: watched.said)
    finally:
        watched.dog.close()


def test_a_healthy_worker_beats(tmp_path: Path) -> None:
    """The file is touched again and again, and gone with the worker."""
    file = tmp_path / "beat"
    with Watched(waiting=False, heartbeat=file) as watched:
        wait_until(file.exists)
        first = file.stat().st_mtime_ns
        wait_until(lambda: file.stat().st_mtime_ns > first)
        assert watched.dog.alive
    assert not file.exists()


def test_a_probe_answers_for_the_worker() -> None:
    """200 and 503, and the metrics beside them; a port that is taken is one clear error."""
    state = {"alive": True, "ready": False}
    port = free_port()
    probe = Probe(port, alive=lambda: state["alive"], ready=lambda: state["ready"])

    def ask(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        assert (ask("/healthz"), ask("/readyz"), ask("/metrics")) == (200, 503, 200)
        state.update(alive=False, ready=True)
        assert (ask("/healthz"), ask("/readyz")) == (503, 200)
        with pytest.raises(UsageError, match="VITRINA_METRICS_PORT"):
            Probe(port, alive=lambda: True, ready=lambda: True)
    finally:
        probe.close()
