"""What of the photos is in a worker's memory at once, from reading them to writing their outputs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from shared.connection import connect
from shared.errors import PictureTooLargeError
from shared.jobs import Job
from shared.messages import Item
from shared.plan import Plan
from shared.progress import Progress
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import Blob, MemoryStorage
from workers.job import OpenJob
from workers.runner import Runner
from workers.testing import InstantModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.keys import StageName
    from shared.recipe import ModelSection
    from workers.stage import Work

SIZE, THREADS, FIT = 10_000, 8, 3


class Ledger:
    """How many bytes of files are in memory, and were at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self.now += size
            self.peak = max(self.peak, self.now)


class Counted(bytes):
    """Bytes that say when they are gone."""

    ledger: Ledger

    def __del__(self) -> None:
        self.ledger.add(-len(self))


class Shop(MemoryStorage):
    """Hands out a file under any name, and keeps nothing."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self.asked = 0

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        super().put(key, bytes(SIZE))
        stat = super().get(key, limit=limit).stat
        self.asked += 1
        file = Counted(SIZE)
        file.ledger = self._ledger
        self._ledger.add(SIZE)
        return Blob(file, stat)

    def put(self, key: str, data: bytes, **_: Any) -> bool:
        del key, data
        return True


class Slow(InstantModel):
    """Takes long enough for others to come meanwhile."""

    def prepare(self, work: Work) -> bytes:
        time.sleep(0.05)
        return super().prepare(work)


@pytest.fixture
def run() -> Callable[..., tuple[Ledger, Shop]]:
    def one(stage: StageName, *, largest: int) -> tuple[Ledger, Shop]:
        def make(stage: StageName, section: ModelSection, settings: Settings) -> Any:
            del settings
            return Slow(stage, section.model)

        settings = Settings(picture_memory=FIT * SIZE, max_bytes=largest, threads=THREADS)
        runner = Runner(stage, settings, make=make)
        runner._largest_output = largest
        ledger = Ledger()
        shop = Shop(ledger)
        job = Job("job", "memory://", "memory://", Recipe(), 0.0)
        etag = shop.get("any").stat.etag
        shop.asked = 0
        opened = OpenJob(job, Plan(job.recipe), shop, shop, Progress(connect(settings), "job"), None)

        def through(number: int) -> None:
            item = Item("job", number, f"{number}.jpg", etag)
            runner._make_outputs(opened, item, opened.plan.outputs(item.key, item.etag))

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(through, range(4 * THREADS)))
        finally:
            runner.close()
        return ledger, shop

    return one


@pytest.mark.parametrize("stage", ["segmentation", "inpainting"])
def test_files_are_counted_before_they_are_read(run: Callable[..., tuple[Ledger, Shop]], stage: StageName) -> None:
    """Of photos and of outputs of earlier stages there are never more than memory was set aside for; each is asked for once."""
    ledger, shop = run(stage, largest=SIZE)
    assert SIZE < ledger.peak <= FIT * SIZE
    assert shop.asked == 4 * THREADS


def test_an_output_that_none_can_be_is_not_read(run: Callable[..., tuple[Ledger, Shop]]) -> None:
    """Somebody has put it there."""
    with pytest.raises(PictureTooLargeError):
        run("inpainting", largest=SIZE - 1)
