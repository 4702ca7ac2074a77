"""Watches a source: photos that are new or have changed become items of one job that stays open.

Each is taken at least once, and made once: an item whose outputs exist is skipped.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

from producer.masks import with_masks
from producer.reconcile import Reconciler
from producer.seen import Seen
from producer.session import Session, create_job
from shared.broker import make_app
from shared.errors import (
    JobCancelledError,
    JobDamagedError,
    JobNotFoundError,
    ObjectMissingError,
    ProgressLostError,
    UsageError,
)
from shared.fingerprints import fingerprint
from shared.jobs import Job, load_listed, read_pages
from shared.messages import Photo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from producer.selection import Selection
    from producer.submit import Submitter
    from shared.progress import Counts
    from shared.recipe import Recipe
    from shared.settings import Settings
    from shared.storage import Storage

log = logging.getLogger(__name__)

OVERLAP = 3600.0
"""Seconds by which a look goes back behind the one before: clocks differ, and S3 dates a large upload by its beginning."""


class Arrivals(Protocol):
    """Where a watch hears of photos."""

    def photos(self) -> Iterator[Photo]:
        """Yield what has come since the last call; some of it may be known. Raises `StorageError`."""
        ...

    def taken(self) -> None:
        """Be told that these are queued, so that they need not come again."""
        ...


class Polling:
    """Lists the source again and again, and takes what changed since shortly before the last time."""

    def __init__(self, source: Storage, destination: Storage, recipe: Recipe, selection: Selection) -> None:
        self._ends = source, destination
        self._recipe = recipe
        self._selection = replace(selection, watch=False)
        self._began = 0.0
        self.cursor = 0.0
        """When the last look began whose photos are all queued, in seconds since the epoch."""

    def photos(self) -> Iterator[Photo]:
        """Yield what the source holds by now."""
        self._began = time.time()
        since = max(self._selection.modified_since, self.cursor - OVERLAP)
        return replace(self._selection, modified_since=since).photos(*self._ends, self._recipe)

    def taken(self) -> None:
        """Begin the next look here."""
        self.cursor = self._began


class Recent(AbstractContextManager["Recent"]):
    """Photos taken lately, by key and content; forgets what no look finds again."""

    def __init__(self) -> None:
        self._generations = [Seen(), Seen()]
        self._turned = time.monotonic()

    def new(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """Yield those that are not known, and know them from then on."""
        if time.monotonic() - self._turned > 2 * OVERLAP:
            self._generations.pop(0).__exit__()
            self._generations.append(Seen())
            self._turned = time.monotonic()
        older, newer = self._generations
        for photo in photos:
            name = [(f"{photo.key}\0{photo.etag}", "")]
            if newer.add(name) == ["new"] and older.add(name) == ["new"]:
                yield photo

    def __exit__(self, *_: object) -> None:
        for seen in self._generations:
            seen.__exit__()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a watch works with between two faults."""

    session: Session
    submitter: Submitter
    recent: Recent
    reconciler: Reconciler
    stack: ExitStack
    """Closes all of it."""


class Watch:
    """One source being watched; used inside `with`, which holds the right to feed its job. Raises `LeaseHeldError` on entry.

    What was asked for (source, recipe, globs) names the watch: started again, it goes on with its job.
    """

    def __init__(
        self,
        source: Storage,
        destination: Storage,
        recipe: Recipe,
        selection: Selection,
        settings: Settings,
        *,
        arrivals: Arrivals | None = None,
        priority: bool = False,
        tick: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        if selection.manifest or selection.limit or selection.sample:
            raise UsageError("a watch takes what comes: give globs or --modified-since, not a list, limit or sample")
        self._ends = source, destination
        self._recipe = recipe
        self._selection = replace(selection, watch=True)
        self._settings = settings
        self._priority = priority
        self._tick = tick
        self._polling = Polling(source, destination, recipe, selection)
        self._arrivals: Arrivals = arrivals or self._polling
        # Not since when: "the last seven days" is another time at each start.
        globs = replace(selection, modified_since=0).to_dict()
        asked = {"source": source.url, "recipe": json.loads(recipe.to_json()), "selection": globs}
        self._name = f"watching/{fingerprint(asked)}.json"
        self._marks: list[tuple[float, int]] = []
        # When a look began that found something, and how many items there were: a later look finds none again from before its oldest mark.
        self._opened: _Opened | None = None
        self.counts: Counts | None = None
        """How far the job was at the last look."""

    @property
    def job(self) -> str:
        """Id of the job; empty before the first look."""
        return self._opened.session.job.id if self._opened else ""

    def __enter__(self) -> Self:
        self._opened = self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def look(self) -> int:
        """Queue what has come, and return how much. Raises `BrokerError`, `StorageError`, after which another look may do better.

        Raises `JobCancelledError` once the job is cancelled, and `LeaseLostError` when another process has taken it over.
        """
        opened = self._opened = self._opened or self._open()
        began = time.time()
        try:
            return self._look(opened, began)
        except ProgressLostError:
            self._close()  # what storage holds is worked out again at the next look, and what was not queued comes again
            return 0
        except BaseException:  # Ctrl-C as well
            self._close()
            raise

    def _look(self, opened: _Opened, began: float) -> int:
        opened.submitter.go_on()
        before = opened.submitter.items.count
        photos = with_masks(opened.recent.new(self._arrivals.photos()), self._ends[0], self._recipe)
        number = opened.submitter.feed(photos, complete=False)
        if opened.submitter.cancelled:
            raise JobCancelledError(f"job {self.job} was cancelled, and the watch with it")
        self._arrivals.taken()
        marks = [mark for mark in self._marks if mark[0] >= began - 2 * OVERLAP]
        self._marks = [*marks, (began, before)] if number else marks
        self._save(opened)
        self.counts = opened.session.progress.counts()
        opened.reconciler.look(self.counts)
        return number

    def _open(self) -> _Opened:
        session, first = self._known() or self._new()
        with ExitStack() as stack:
            submitter = stack.enter_context(session.producing(self._tick))
            app = make_app(self._settings)
            stack.callback(app.close)
            recent = stack.enter_context(Recent())
            # Items that were listed and not queued are queued, and none of them is taken for new.
            submitter.catch_up()
            for page in read_pages(self._ends[1], session.job.id, since=first):
                for _ in recent.new(Photo(item.key, item.etag) for item in page):
                    pass
            reconciler = Reconciler(app, session.client, session.job, self._ends[1], self._settings)
            self._marks = [(time.time(), first)]
            opened = _Opened(session, submitter, recent, reconciler, stack.pop_all())
        self._save(opened)
        return opened

    def _close(self) -> None:
        if self._opened:
            self._opened.stack.close()
        self._opened = None

    def _new(self) -> tuple[Session, int]:
        job = create_job(*self._ends, self._recipe, self._selection, priority=self._priority)
        return Session(job, *self._ends, self._settings), 0

    def _known(self) -> tuple[Session, int] | None:
        """Open the job of an earlier run, and tell from which item on a look may find it again; None without one to go on with."""
        destination = self._ends[1]
        try:
            state = json.loads(destination.get(self._name).data)
            name, cursor, first = str(state["job"]), float(state["cursor"]), int(state["first"])
        except ObjectMissingError:
            return None
        except (ValueError, KeyError, TypeError):
            raise JobDamagedError(
                f"{destination.url}/{self._name} is damaged: delete it, and the watch begins anew"
            ) from None
        self._polling.cursor = cursor
        try:
            job = Job.load(name, destination)
        except JobNotFoundError:
            return None  # purged
        if load_listed(destination, name):
            return None  # cancelled
        log.info("going on with job %s", name, extra={"action": "watch", "job": name})
        return Session(job, *self._ends, self._settings), first

    def _save(self, opened: _Opened) -> None:
        """Write down where another run goes on."""
        first = self._marks[0][1] if self._marks else opened.submitter.items.count
        state = {"version": 1, "job": opened.session.job.id, "cursor": self._polling.cursor, "first": first}
        data = json.dumps({**state, "source": self._ends[0].url}).encode()
        self._ends[1].put(self._name, data, content_type="application/json")
