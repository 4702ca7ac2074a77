"""Requests to a storage go out together where that pays, and come back in order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from shared.errors import StorageError
from shared.settings import Settings
from shared.storage import MemoryStorage, in_parallel, open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from shared.storage import Stat


class Distant(MemoryStorage):
    """Answers no request before `at_once` of them are on their way."""

    at_once = 4

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Barrier(self.at_once)

    def head(self, key: str) -> Stat | None:
        self._gate.wait(timeout=10)
        return super().head(key)


def test_requests_over_a_network_are_on_their_way_together() -> None:
    storage = Distant()

    assert list(in_parallel(storage, storage.head, "abcdefgh")) == [None] * 8


def test_a_folder_is_read_by_one_thread(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), Settings())

    threads = set(in_parallel(storage, lambda _: threading.current_thread(), range(100)))

    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("storage", [MemoryStorage(), Distant()])
def test_answers_come_in_the_order_of_the_questions(storage: MemoryStorage) -> None:
    assert list(in_parallel(storage, lambda number: number * 2, range(50))) == list(range(0, 100, 2))


@pytest.mark.parametrize("storage", [MemoryStorage(), Distant()])
def test_what_a_request_raises_is_raised(storage: MemoryStorage) -> None:
    def refuse(number: int) -> int:
        raise StorageError(f"no answer to {number}")

    with pytest.raises(StorageError, match="no answer to 0"):
        list(in_parallel(storage, refuse, range(3)))
