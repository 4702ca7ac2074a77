"""Follows a job to its end: counts, a live bar per stage on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from producer.pace import Pace, tell_left, tell_rate, tell_stages
from producer.patience import patiently
from shared.errors import BrokerError, JobDamagedError
from shared.keys import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from shared.progress import Counts
    from shared.progress import Progress as JobProgress

POLL_SECONDS = 0.25
LOOK_SECONDS = 2.0
QUIET_SECONDS = 15.0
"""Between two lines where there is no terminal."""
LABELS = {"segmentation": "cutting out", "inpainting": "background", "captioning": "describing"}


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job went; the `--json` line and `summary.json`."""

    job: str
    items: int
    done: int
    """With every output, those in need of review included."""
    needs_review: int
    failed: int
    skipped: int
    """Of the done: made by an earlier job."""
    seconds: float
    images_per_second: float
    """Of the items that were made: neither skipped nor failed."""
    report: str | None = None

    @classmethod
    def of(cls, job: str, counts: Counts, seconds: float) -> Summary:
        """Sum up a job that took `seconds`."""
        made = counts.done - counts.skipped  # a photo that cannot be read takes no time worth counting
        rate = made / seconds if seconds > 0 else 0.0
        return cls(
            job=job,
            items=counts.items,
            done=counts.done,
            needs_review=counts.needs_review,
            failed=counts.failed,
            skipped=counts.skipped,
            seconds=round(seconds, 3),
            images_per_second=round(rate, 3),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Summary:
        """Read the JSON-able form; what another release added is left out. Raises `JobDamagedError`."""
        try:
            return cls(**{field.name: data[field.name] for field in fields(cls)})
        except KeyError as error:
            raise JobDamagedError(
                f"the job's summary.json lacks {error}: delete it, and it is worked out again"
            ) from None


class Display(AbstractContextManager["Display"]):
    """Shows counts and rates as they come: bars on a terminal, a line every `QUIET_SECONDS` elsewhere."""

    def __init__(self, console: Console, around: Callable[[], str] | None = None) -> None:
        """`around` tells what else to show, asked for every `LOOK_SECONDS` on a terminal, and for every line elsewhere."""
        self._console = console
        self._around = around
        self._looked = 0.0
        self._pace = Pace()
        self._live: Live | None = None
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=None),
                *(TextColumn(f"{{task.fields[{name}]}}", justify="right") for name in ("count", "rate", "left")),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._live = Live(self._progress, console=console, refresh_per_second=8)
            self._bars = {
                stage: self._progress.add_task(LABELS[stage], total=None, count="", rate="", left="", note="")
                for stage in STAGES
            }
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, counts: Counts) -> None:
        """Show the newest counts."""
        self._pace.look(counts, time.monotonic())
        note = f"{counts.failed} failed" if counts.failed else ""
        note = counts.state if counts.state != "running" else note
        items = f"{counts.items}{'' if counts.listed else '+'}"  # more may be listed
        if self._live:
            self._show_bars(counts, items, note)
            if self._around and time.monotonic() - self._looked >= LOOK_SECONDS:
                self._looked = time.monotonic()
                self._live.update(Group(self._progress, Text(self._look_around(), style="dim")))
        elif time.monotonic() - self._last_line >= QUIET_SECONDS:
            self._last_line = time.monotonic()
            rates = {stage: self._pace.rate(stage) for stage in STAGES}
            left = tell_left(self._pace.left(STAGES[-1]))
            through = tell_stages({LABELS[stage]: (counts.stages[stage], rates[stage]) for stage in STAGES})
            parts = (f"{through} of {items}", note, left, self._look_around())
            self._console.print("; ".join(filter(None, parts)))

    def _show_bars(self, counts: Counts, items: str, note: str) -> None:
        for stage in STAGES:
            self._progress.update(
                self._bars[stage],
                total=max(1, counts.items) if counts.items else None,
                completed=counts.stages[stage],
                count=f"{counts.stages[stage]}/{items}",
                rate=tell_rate(self._pace.rate(stage)),
                left=tell_left(self._pace.left(stage)),
                note=note if stage == STAGES[-1] else "",
            )

    def _look_around(self) -> str:
        try:
            return self._around() if self._around else ""
        except BrokerError as error:  # whoever follows is patient with it
            return str(error)


def follow(
    progress: JobProgress, show: Callable[[Counts], None], look_after: Callable[[Counts], None] = lambda _: None
) -> Counts:
    """Wait until nothing of the job is left to do, and return its final counts.

    `show` is told the newest counts; so is `look_after`, which may need the broker as well and is called again when that is away.
    Raises `BrokerError` when it is away for too long.
    """
    counts = progress.counts()
    while True:
        show(counts)
        patiently(partial(look_after, counts), partial(show, counts))
        if counts.finished:
            return counts
        time.sleep(POLL_SECONDS)
        counts = patiently(progress.counts, partial(show, counts))
