"""The end of a job, written beside its records: `summary.json` and `failures/`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from shared.errors import JobDamagedError
from shared.jobs import save_summary
from shared.keys import job_prefix
from shared.progress import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from producer.follow import Summary
    from shared.progress import Progress
    from shared.storage import Storage

FILE = 10_000
"""Failures in one file: all that is held at once."""


def seal(destination: Storage, progress: Progress, summary: Summary, *, if_absent: bool = False) -> None:
    """Write how a job ended; the summary last, since it says that the job has. Raises `StorageError`, `BrokerError`."""
    failures = progress.failures()
    while some := list(islice(failures, FILE)):
        lines = (json.dumps(asdict(failure), ensure_ascii=False) for failure in some)
        data = "\n".join(lines).encode(errors="backslashreplace") + b"\n"
        key = f"{_failures(summary.job)}{some[0].index:010d}.jsonl"
        destination.put(key, data, content_type="application/jsonl")
    save_summary(destination, summary.job, summary.to_dict(), if_absent=if_absent)


def unseal(destination: Storage, job: str) -> None:
    """Take back how a job ended: it is going on. Raises `StorageError`."""
    destination.delete(job_prefix(job) + "summary.json")
    for stat in list(destination.list(_failures(job))):
        destination.delete(stat.key)


def read_failures(destination: Storage, job: str) -> Iterator[Failure]:
    """Yield the failures of a job that has ended, by index; of one that has not, none. Raises `JobDamagedError`."""
    for stat in destination.list(_failures(job)):
        for number, line in enumerate(destination.get(stat.key).data.splitlines(), 1):
            try:
                yield Failure(**json.loads(line))
            except (ValueError, TypeError):
                msg = f"{destination.url}/{stat.key}, line {number}, is damaged: restore it or delete the file"
                raise JobDamagedError(msg) from None


def _failures(job: str) -> str:
    return job_prefix(job) + "failures/"
