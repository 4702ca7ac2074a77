"""What the commands print about a job: one line, the failures by reason, its status."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from producer.cli.common import err, print_json
from producer.report.reasons import explain

if TYPE_CHECKING:
    from producer.follow import Summary
    from producer.session import Session
    from shared.progress import Failure

LOOKED_AT = 10_000
"""Failures among which an example of each reason is looked for."""


def tell_start(session: Session) -> None:
    """Print the job's id, so that whoever is interrupted knows what to go on with."""
    err.print(f"job {session.job.id}: {session.job.source} → {session.job.destination}", soft_wrap=True)


def tell_empty(session: Session) -> None:
    """Say why a job has no items."""
    asked = sorted({"include", "exclude", "modified_since"} & session.job.selection.keys())
    if asked:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        err.print(f"{options} asks for no photo of {session.job.source}", soft_wrap=True)
    else:
        err.print(f"{session.job.source} holds no photos: check the address", soft_wrap=True)


def tell_failures(session: Session, summary: Summary) -> None:
    """Print how many items failed for which reason, what to do about it, and one of each with its own cause."""
    if not summary.failed:
        return
    reasons = session.progress.reasons()
    examples: dict[str, Failure] = {}
    for failure in islice(session.failures, LOOKED_AT):
        examples.setdefault(failure.reason, failure)
        if len(examples) == len(reasons):
            break
    for reason, number in reasons.items():
        said, example = explain(reason), examples.get(reason)
        what = " ".join(filter(None, (said.advice, said.remedy)))
        err.print(f"  {reason}, {number} item{'' if number == 1 else 's'}: {what}", soft_wrap=True)
        if example is None:
            continue
        err.print(f"    {'for example ' if number > 1 else ''}{example.key}: {example.detail}", soft_wrap=True)


def tell(summary: Summary, *, as_json: bool) -> int:
    """Print how a job went and return the exit status."""
    rate = f", {summary.images_per_second:.2f} images/s" if summary.images_per_second else ""
    line = (
        f"{summary.done} of {summary.items} done ({summary.needs_review} to review, {summary.skipped} skipped), "
        f"{summary.failed} failed, {summary.seconds:.1f} s{rate}"
    )
    err.print(line, soft_wrap=True)
    if summary.report:
        err.print(f"report: {summary.report}", soft_wrap=True)
    if as_json:
        print_json(summary.to_dict())
    return 1 if summary.failed or not summary.items else 0
