"""Vitrina from Python, for notebooks and for the operators of Airflow and Dagster. See docs/python.md."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from producer import repairs
from producer.inputs import address, load_recipe, open_source
from producer.results import Results
from producer.selection import Selection
from producer.session import Session, create_job
from producer.status import Surroundings, status
from shared.connection import broker_errors, connect
from shared.progress import known_jobs
from shared.settings import Settings
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from producer.follow import Summary
    from producer.results import Result
    from shared.keys import StageName
    from shared.progress import Counts
    from shared.recipe import Recipe


class Client:
    """Speaks to a broker and to storages; holds no connection between calls.

    Settings that are not given come from `VITRINA_*` variables, as on the command line. Errors are those of `shared.errors`; what they say is
    what to do.
    """

    def __init__(self, broker: str | None = None, *, endpoint_url: str | None = None, **settings: Any) -> None:
        """`broker` is a Redis address, `endpoint_url` an S3 server that is not AWS; `settings` are any of `shared.settings`. Raises `UsageError`."""
        self.settings = Settings.load(
            broker=SecretStr(broker) if broker else None, endpoint_url=endpoint_url, **settings
        )

    def submit(
        self,
        source: str,
        out: str,
        *,
        recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
        selection: Selection | None = None,
        priority: bool = False,
        block: bool = True,
    ) -> Run:
        """Make a job of the photos at `source` and feed it; returns when all are queued or, without `block`, at once.

        `recipe` is a file, the name of one that comes along, or its content. Feeding goes on in a thread where it does not block: it ends with the
        process, and `Client.job(id).feed()` goes on in another. What a manifest says twice, or in columns that are not used, is warned of.
        """
        with broker_errors(), connect(self.settings) as client:
            client.ping()
        photos, destination = open_source(source, self.settings), open_storage(address(out), self.settings)
        chosen = selection or Selection()
        for note in chosen.check():
            warnings.warn(note, stacklevel=2)
        job = create_job(
            photos, destination, load_recipe(recipe, destination, self.settings), chosen, priority=priority
        )
        run = Run(Session(job, photos, destination, self.settings))
        run.session.progress.begin(job.destination)  # known from now on, also while a thread has yet to feed it
        run.feed(block=block)
        return run

    def job(self, job: str, out: str | None = None) -> Run:
        """Open a job by its id; `out` is where its records are, if the broker may have forgotten it. Raises `JobNotFoundError`."""
        return Run(Session.reopen(job, address(out) if out else None, self.settings))

    def jobs(self) -> list[str]:
        """Return the ids of the jobs the broker knows, the newest first."""
        return known_jobs(connect(self.settings))


class Run:
    """One job: feed it, follow it, read its results, correct it. Every method raises `BrokerError` or `StorageError` when these do not answer."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._feeding: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def id(self) -> str:
        """The job's id, such as `20261123-142501-3f9a2c`."""
        return self.session.job.id

    def feed(self, *, block: bool = True) -> None:
        """Queue what was asked for and is not queued yet. Raises `LeaseHeldError` when another process is at it."""
        if block:
            self.session.feed()
            return

        def feed() -> None:
            try:
                self.session.feed()
            except Exception as error:  # noqa: BLE001 - whatever ended the thread is raised again by `wait`
                self._error = error

        self._feeding = threading.Thread(target=feed, name=f"feeding {self.id}", daemon=True)
        self._feeding.start()

    def status(self) -> dict[str, Any]:
        """Return what `vitrina status --json` prints: counts, stages, rate, failures by reason, queues, workers."""
        session = self.session
        known = session.progress.destination() is not None
        around = Surroundings.of(session.client, session.progress, session.settings) if known else None
        # Counted afterwards: a producer that ends meanwhile has listed everything.
        counts = session.progress.counts()
        return status(session.summary(counts), counts, around)

    def wait(self, timeout: float | None = None, tick: Callable[[Counts], None] = lambda _: None) -> Summary:
        """Wait until every item is done or has failed, sending again what the broker loses; write the summary and return it.

        `tick` is called with the counts several times a second. Raises `TimeoutError` after `timeout` seconds; the job goes on.
        """
        until = time.monotonic() + timeout if timeout is not None else None

        def look(counts: Counts) -> None:
            if self._error:
                raise self._error
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"job {self.id} has not ended in {timeout} s; it goes on")
            tick(counts)

        counts = self.session.follow(look)
        summary = self.session.summary(counts)
        self.session.seal_if_ended(counts, summary)
        return summary

    def results(self) -> Iterator[Result]:
        """Yield a row per item in the order of listing: outcome, reasons, captions, keys of the outputs."""
        return iter(Results(self.session.job, self.session.destination, self.session.progress))

    def report(self, path: str | Path) -> Path:
        """Write the HTML report and return where."""
        counts = self.session.progress.counts()
        return Path(self.session.report(self.session.summary(counts), Path(path)).report or path)

    def retry(self, *, stage: StageName | None = None, reason: str | None = None, review: bool = False) -> int:
        """Run the failed items again, or with `review` the doubtful ones; return how many."""
        return repairs.retry(self.session, stage=stage, reason=reason, review=review)

    def rerun(
        self, since: StageName, recipe: Recipe | Mapping[str, Any] | str | Path, *, incomplete: bool = False
    ) -> Run:
        """Make the same photos again as a new job that keeps the stages before `since`; with `incomplete` those that are listed so far."""
        chosen = load_recipe(recipe, self.session.destination, self.session.settings)
        run = Run(repairs.rerun(self.session, since, chosen, incomplete=incomplete))
        run.feed()
        return run

    def cancel(self) -> bool:
        """Drop what is queued; what runs, finishes. Tell whether all photos had been listed."""
        return repairs.cancel(self.session)

    def pause(self) -> int:
        """Queue nothing more until `resume`; return how many photos are queued and go on."""
        return repairs.pause(self.session)

    def resume(self) -> bool:
        """End a pause; tell whether all goes on: a producer is there, or everything is queued."""
        return repairs.resume(self.session)

    def purge(self) -> int:
        """Delete the outputs that this job made and its records; return how many outputs."""
        return repairs.purge(self.session)
