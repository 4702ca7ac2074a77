"""The end of a job, written beside its records: `summary.json` and `failures.jsonl`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count, islice
from typing import TYPE_CHECKING

from producer.failures import Failures
from shared.errors import JobDamagedError, ObjectMissingError
from shared.jobs import save_summary
from shared.keys import job_prefix
from shared.progress import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from producer.follow import Summary
    from shared.progress import Progress
    from shared.storage import Storage

FILE = 100_000
"""Failures in one file, of some 20 MB: all that is held at once. There is a second where there are more."""


def seal(
    destination: Storage,
    progress: Progress,
    summary: Summary,
    *,
    if_absent: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Write how a job ended; the summary last, since it says that the job has.

    `meanwhile` is called after every file of failures; what it raises ends it. Raises `StorageError`, `BrokerError`, `JobDamagedError`.
    """
    lines = (json.dumps(asdict(failure), ensure_ascii=False) for failure in Failures(destination, progress))
    for number in count(1):
        some = "\n".join(islice(lines, FILE))
        if not some:
            break
        data = some.encode(errors="backslashreplace") + b"\n"
        destination.put(_failures(summary.job, number), data, content_type="application/jsonl")
        meanwhile()
    save_summary(destination, summary.job, summary.to_dict(), if_absent=if_absent)


def unseal(destination: Storage, job: str) -> None:
    """Take back how a job ended: it is going on. Raises `StorageError`."""
    destination.delete(job_prefix(job) + "summary.json")
    for stat in list(destination.list(job_prefix(job) + "failures")):
        destination.delete(stat.key)


def read_failures(destination: Storage, job: str) -> Iterator[Failure]:
    """Yield the failures of a job that has ended, by index; of one that has not, none. Raises `JobDamagedError`."""
    for number in count(1):
        key = _failures(job, number)
        try:
            data = destination.get(key).data
        except ObjectMissingError:
            return
        for place, line in enumerate(data.splitlines(), 1):
            try:
                yield Failure(**json.loads(line))
            except (ValueError, TypeError):
                msg = f"{destination.url}/{key}, line {place}, is damaged: restore it or delete the file"
                raise JobDamagedError(msg) from None


def _failures(job: str, number: int) -> str:
    return job_prefix(job) + ("failures.jsonl" if number == 1 else f"failures-{number}.jsonl")
