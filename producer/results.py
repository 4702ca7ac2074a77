"""What became of each item, read a page at a time: from its record the first time, from kept pages afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from functools import partial
from typing import TYPE_CHECKING, Any

from producer.failures import Failures
from producer.records import read_record
from producer.sealing import read_failures
from shared.bitmap import bit
from shared.errors import ItemError, JobDamagedError, ObjectMissingError, StorageRefusedError
from shared.jobs import PAGE, load_listed, parse_lines, read_page, read_pages
from shared.keys import STAGES, job_prefix, own_outputs
from shared.plan import Plan
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from shared.jobs import Job
    from shared.messages import Item
    from shared.progress import Failure, Progress
    from shared.storage import Storage

UNFINISHED = "unfinished"
MISSING = ObjectMissingError.reason


@dataclass(frozen=True, slots=True)
class Result:
    """One item of a job, as far as it has come."""

    index: int
    key: str
    outcome: str
    """`done`, `needs_review`, `failed` or `unfinished`."""
    reasons: tuple[str, ...] = ()
    """Why it failed, or why a person should look at it."""
    stage: str = ""
    """Where it failed."""
    detail: str = ""
    """Why, in words."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says of it: id, title, category and the like."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """By language."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """By language, what a vision-language model wrote beside the caption."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """By kind (`mask`, `cutout`, `image`, …), keys in the output storage."""
    size: tuple[int, int] | None = None
    """Width and height of the finished picture in pixels."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage, without waiting."""
    ran: bool | None = None
    """Whether this job made the outputs, and not an earlier one; None where that is not known."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, without what is empty."""
        named = ((name, getattr(self, name)) for name in _NAMES)
        return {name: value for name, value in named if value not in _EMPTY}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Read the JSON-able form."""
        lists = {name: tuple(data[name]) for name in ("reasons", "size") if data.get(name)}
        return cls(**{**data, **lists})


_NAMES = tuple(each.name for each in dataclass_fields(Result))
_EMPTY: tuple[object, ...] = (None, "", (), {})


class Results:
    """The items of a job in order. Can be read again and again; raises `StorageError`, `BrokerError` and `JobDamagedError` while it is."""

    def __init__(self, job: Job, destination: Storage, progress: Progress) -> None:
        self._job = job
        self._destination = destination
        self._progress = progress
        self._failures = Failures(destination, progress)
        self._plan = Plan(job.recipe)
        self._keeps = True
        # Until the storage refuses: who may only read gets the same rows.

    def __iter__(self) -> Iterator[Result]:
        for page in self.pages():
            yield from page

    def pages(self) -> Iterator[list[Result]]:
        """Yield the results of a thousand items at a time."""
        counts = self._progress.counts()
        # Without a broker, what was recorded at the job's end is all there is.
        recorded = None if counts.known else in_order(read_failures(self._destination, self._job.id))
        listed = counts.listed if counts.known else load_listed(self._destination, self._job.id)
        for items in read_pages(self._destination, self._job.id):
            told = recorded(items[-1].index) if recorded else None
            kept = read_kept(self._destination, items)
            # A page that may grow is not kept.
            yield kept if kept is not None else self._worked_out(items, told, keep=listed or len(items) == PAGE)

    def kept(self) -> int:
        """Return the index up to which the results are kept without a gap."""
        first = 0
        for stat in self._destination.list(_pages(self._job.id)):
            if stat.key != _page_key(self._job.id, first):
                break
            first += PAGE
        return first

    def keep(self, first: int) -> None:
        """Keep the results of the page of the index `first`, all of whose items have ended and that grows no more; unless they are kept."""
        if self._keeps and self._destination.head(_page_key(self._job.id, first)) is None:
            self._worked_out(read_page(self._destination, self._job.id, first), None, keep=True)

    def _worked_out(self, items: Sequence[Item], told: dict[int, Failure] | None, *, keep: bool) -> list[Result]:
        """Read the results of a page from its items' records; `told` is how some failed, when no broker knows it."""
        failed, done, ran = self._state(items) if told is None else (told, None, None)
        page = list(in_parallel(self._destination, partial(self._read, done, ran, failed), items))
        # What is missing may be restored.
        if keep and all(result.outcome != UNFINISHED and MISSING not in result.reasons for result in page):
            key = _page_key(self._job.id, items[0].index)
            self._keep(key, page)
            # Some of it may have been taken back meanwhile, to be run again.
            if told is None and self._state(items) != (failed, done, ran):
                self._destination.delete(key)
        return page

    def _state(self, items: Sequence[Item]) -> tuple[dict[int, Failure], bytes, bytes]:
        failed = self._failures.of([item.index for item in items])
        page = items[0].index, len(items)
        return failed, self._progress.done_of(*page), self._progress.ran_of(*page)

    def _keep(self, key: str, page: Sequence[Result]) -> None:
        if not self._keeps:
            return
        lines = (json.dumps(result.to_dict(), ensure_ascii=False) for result in page)
        data = "\n".join(lines).encode(errors="backslashreplace")
        try:
            self._destination.put(key, data, content_type="application/jsonl")
        except StorageRefusedError:
            self._keeps = False

    def _read(self, done: bytes | None, ran: bytes | None, failed: Mapping[int, Failure], item: Item) -> Result:
        failure = failed.get(item.index)
        fields = dict(item.fields)
        if failure is not None:
            return Result(
                item.index,
                item.key,
                "failed",
                (failure.reason,),
                stage=failure.stage,
                detail=failure.detail,
                fields=fields,
            )
        if done is not None and not bit(done, item.index % PAGE):
            return Result(item.index, item.key, UNFINISHED, fields=fields)
        try:
            key = self._plan.outputs(item.key, item.etag, item.fields).key("caption")
            record = read_record(self._destination, key)
        except (ItemError, ObjectMissingError):
            reasons = (MISSING,) if done is not None else ()
            return Result(item.index, item.key, "failed" if reasons else UNFINISHED, reasons, fields=fields)
        except JobDamagedError as error:
            return Result(item.index, item.key, "failed", (MISSING,), detail=str(error), fields=fields)
        return _of_record(item, record, fields, None if ran is None else bit(ran, item.index % PAGE))


def in_order(failures: Iterator[Failure]) -> Callable[[int], dict[int, Failure]]:
    """Return what gives the failures of a page of items, by index, when it is asked for one page after another, each by its last index."""
    waiting = next(failures, None)

    def of(last: int) -> dict[int, Failure]:
        nonlocal waiting
        found = {}
        while waiting is not None and waiting.index <= last:
            found[waiting.index] = waiting
            waiting = next(failures, None)
        return found

    return of


def _of_record(item: Item, record: Mapping[str, Any], fields: Mapping[str, Any], ran: bool | None) -> Result:
    stages = record.get("stages", {})
    measures = stages.get("inpainting", {}).get("measures", {})
    return Result(
        item.index,
        item.key,
        record["outcome"],
        tuple(record.get("reasons", ())),
        fields=fields,
        captions=record.get("captions", {}),
        details=record.get("details", {}),
        outputs=own_outputs(item.key, record.get("outputs", {})),
        size=_size(measures),
        seconds={
            name: round(sum(spent for phase, spent in stages[name].get("seconds", {}).items() if phase != "wait"), 3)
            for name in STAGES
            if name in stages
        },
        ran=ran,
    )


def _size(measures: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = measures.get("width"), measures.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def read_kept(destination: Storage, items: Sequence[Item]) -> list[Result] | None:
    """Return the results of a page of items where they are kept. Raises `StorageError`, `JobDamagedError`."""
    key = _page_key(items[0].job, items[0].index)
    try:
        data = destination.get(key).data
    except ObjectMissingError:
        return None
    try:
        page = [Result.from_dict(row) for row in parse_lines(data)]
    except (ValueError, TypeError, KeyError):
        raise JobDamagedError(f"{destination.url}/{key} is damaged: delete it, and it is worked out again") from None
    # Of a page that has grown since, all is read again.
    return page if len(page) == len(items) else None


def forget_results(destination: Storage, job: str, indices: Iterable[int]) -> None:
    """Drop the kept pages of items that are run again. Raises `StorageError`."""
    for first in sorted({index // PAGE * PAGE for index in indices}):
        destination.delete(_page_key(job, first))


def _pages(job: str) -> str:
    return f"{job_prefix(job)}results/"


def _page_key(job: str, first: int) -> str:
    return f"{_pages(job)}{first:010d}.jsonl"
