"""Reads several folders of a listing at once and yields them in order: a listing waits for one answer after the other otherwise."""

from __future__ import annotations

import queue
import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shared.storage.base import Stat

FOLDERS = 8
"""Folders read at once; each holds at most `PAGES` pages of 1,000 in memory."""
PAGES = 4
_PAGE = 1000
_LOOK_SECONDS = 0.5
LAST = chr(0x10FFFF)
"""Comes after every character of a key."""


class _Stream:
    """One folder, read by a thread of its own until it is full."""

    def __init__(self, stats: Iterator[Stat], stop: threading.Event) -> None:
        self._stats = stats
        self._stop = stop
        self._pages: queue.Queue[list[Stat] | Exception] = queue.Queue(PAGES)
        threading.Thread(target=self._read, name="listing", daemon=True).start()

    def _read(self) -> None:
        try:
            while page := list(islice(self._stats, _PAGE)):
                self._put(page)
            self._put([])
        except Exception as error:  # noqa: BLE001 - raised again where the folder is wanted
            self._put(error)

    def _put(self, page: list[Stat] | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._pages.put(page, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[Stat]:
        while True:
            page = self._pages.get()
            if isinstance(page, Exception):
                raise page
            if not page:
                return
            yield from page


def read_ahead(
    entries: Iterator[Stat | str], folder: Callable[[str], Iterator[Stat]], rest: Callable[[str], Iterator[Stat]]
) -> Iterator[Stat]:
    """Yield what lies in `entries`, objects and names of folders in order, with each folder's content in its place.

    Once the last few folders held less than half a page, a request for each is a waste: `rest` reads what comes after an entry without them.
    """
    stop = threading.Event()
    waiting: deque[Iterable[Stat]] = deque()
    open_folders = 0
    sizes: deque[int] = deque(maxlen=FOLDERS)
    small = False
    last: Stat | str = ""
    try:
        while True:
            while not small and open_folders < FOLDERS and (entry := next(entries, None)) is not None:
                last = entry
                if isinstance(entry, str):
                    waiting.append(_Stream(folder(entry), stop))
                    open_folders += 1
                else:
                    waiting.append((entry,))
                    if len(waiting) > _PAGE:
                        break
            if not waiting:
                break
            first = waiting.popleft()
            if not isinstance(first, _Stream):
                yield from first
                continue
            size = 0
            for size, stat in enumerate(first, 1):  # noqa: B007 - the last of these numbers is the folder's size
                yield stat
            open_folders -= 1
            sizes.append(size)
            small = len(sizes) == FOLDERS and sum(sizes) < FOLDERS * _PAGE // 2
    finally:
        stop.set()
    if small:
        yield from rest(last + LAST if isinstance(last, str) else last.key)
