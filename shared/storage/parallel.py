"""Short requests to a storage, as many at once as it rewards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shared.storage.base import Storage

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


def in_parallel(storage: Storage, request: Callable[[_Asked], _Answer], page: Iterable[_Asked]) -> Iterator[_Answer]:
    """Yield what `request` returns for each of a page, in order; raise what it raises."""
    if storage.at_once == 1:
        yield from map(request, page)
        return
    with ThreadPoolExecutor(storage.at_once) as pool:
        yield from pool.map(request, page)
