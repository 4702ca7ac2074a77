"""The end of a job, written beside its records: `summary.json` and `failures.jsonl`."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from shared.errors import JobDamagedError, ObjectMissingError
from shared.jobs import save_summary
from shared.keys import job_prefix
from shared.progress import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from producer.follow import Summary
    from shared.progress import Progress
    from shared.storage import Storage


def seal(destination: Storage, progress: Progress, summary: Summary, *, if_absent: bool = False) -> None:
    """Write how a job ended; the summary last, since it says that the job has. Raises `StorageError`, `BrokerError`."""
    if summary.failed:
        failures = sorted(progress.failures(), key=lambda failure: failure.index)
        lines = (json.dumps(asdict(failure), ensure_ascii=False) for failure in failures)
        data = "\n".join(lines).encode(errors="backslashreplace") + b"\n"
        destination.put(_failures_key(summary.job), data, content_type="application/jsonl")
    save_summary(destination, summary.job, summary.to_dict(), if_absent=if_absent)


def unseal(destination: Storage, job: str) -> None:
    """Take back how a job ended: it is going on. Raises `StorageError`."""
    destination.delete(job_prefix(job) + "summary.json")
    destination.delete(_failures_key(job))


def read_failures(destination: Storage, job: str) -> Iterator[Failure]:
    """Yield the failures of a job that has ended, by index; of one that has not, none. Raises `JobDamagedError`."""
    data = b""
    with suppress(ObjectMissingError):
        data = destination.get(_failures_key(job)).data
    for number, line in enumerate(data.splitlines(), 1):
        try:
            yield Failure(**json.loads(line))
        except (ValueError, TypeError):
            msg = f"{destination.url}/{_failures_key(job)}, line {number}, is damaged: restore it or delete the file"
            raise JobDamagedError(msg) from None


def _failures_key(job: str) -> str:
    return job_prefix(job) + "failures.jsonl"
