"""The command export."""

from __future__ import annotations

import glob
import os
import secrets
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - typer reads the annotation when the program runs
from typing import IO, TYPE_CHECKING

import typer

from producer.cli.common import BrokerOption, EndpointOption, err, load_settings
from producer.cli.status import JobArgument, OutOption, reopen
from producer.export import FEEDS, TABLES, Columns, FeedOptions, join, write_table
from producer.results import UNFINISHED, Results
from producer.tables import Table
from shared.errors import UsageError, VitrinaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from producer.results import Result
    from producer.session import Session

APPROVABLE = ("done", "needs_review")
OUTCOMES = ("done", "needs_review", "failed", UNFINISHED)
STALE_SECONDS = 3600
"""An unfinished file that nobody has written to for so long is nobody's."""
TO_STDOUT = {"jsonl", "csv"}


@contextmanager
def target(path: Path | None) -> Iterator[IO[bytes]]:
    """Open what is written: a file that is there whole or not at all, or stdout. Raises `UsageError`."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # by one that was killed
            if left.stat().st_mtime < time.time() - STALE_SECONDS:
                left.unlink()
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)  # noqa: PTH105 - atomic
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}: give --to another place") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_keys(approved: Path) -> set[str]:
    """Read which photos a person has approved. Raises `UsageError`."""
    keys = set()
    for line, row in Table(approved, ("key",)):
        key = row.get("key")
        if not isinstance(key, str) or not key:
            why = row.get("", "the key is missing")
            raise UsageError(f"{approved}, line {line}: {why}: save it from the report, or make a table with `key`")
        keys.add(key)
    if not keys:
        raise UsageError(f"{approved} names no keys: save it from the report, or make a table with `key`")
    return keys


def chosen(session: Session, only: set[str], approved: set[str] | None, passed: Counter[str]) -> Iterator[Result]:
    """Yield the results whose outcome is wanted and, where a list is given, of the doubtful the approved; count the others in `passed`."""
    for result in Results(session.job, session.destination, session.progress):
        if result.outcome not in only:
            passed[result.outcome] += 1
        elif approved is not None and result.outcome != "done" and result.key not in approved:
            passed["not approved"] += 1
        else:
            yield result


def check(kind: str, only: str | None, to: Path | None, feed: Path | None, approved: Path | None) -> set[str]:
    """Return the outcomes that are wanted. Raises `UsageError` for options that do not go together."""
    if kind not in {*TABLES, *FEEDS}:
        raise UsageError(f"no format {kind!r}: choose {', '.join([*TABLES, *FEEDS])}")
    if to is None and kind not in TO_STDOUT:
        raise UsageError(f"--format {kind} needs --to FILE")
    if (kind in FEEDS) != (feed is not None):
        raise UsageError(
            f"--feed FILE is the merchant's own feed: it goes with --format {' or '.join(FEEDS)}, and these need it"
        )
    usual = APPROVABLE if approved else ("done",) if kind in FEEDS else OUTCOMES
    wanted = set(only.split(",") if only else usual)
    if unknown := wanted - set(OUTCOMES):
        raise UsageError(f"no outcome {', '.join(sorted(unknown))}: choose {', '.join(OUTCOMES)}")
    return wanted


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:  vitrina export JOB --format csv --to items.csv --base-url https://cdn.shop.example/catalogue"
        "   |   vitrina export JOB --format google-xml --feed merchant.xml --on id --to feed.xml --base-url https://cdn.shop.example"
    )
    def export(
        job: str = JobArgument,
        kind: str = typer.Option("jsonl", "--format", help=f"{', '.join(TABLES)}; with --feed {', '.join(FEEDS)}."),
        to: Path | None = typer.Option(None, "--to", help="The file to write; without it jsonl and csv go to stdout."),
        base_url: str | None = typer.Option(None, help="Web address of the output storage: outputs become links."),
        only: str | None = typer.Option(
            None, help=f"Outcomes, with commas between: {', '.join(OUTCOMES)}. Feeds: done."
        ),
        approved: Path | None = typer.Option(
            None,
            help="A table of keys, such as the report's approved.csv: of the doubtful items these, beside all that are done.",
        ),
        feed: Path | None = typer.Option(None, help="The merchant's own feed, which gets our pictures and texts."),
        on: str = typer.Option("id", help="What the feed calls the manifest's id."),
        language: str | None = typer.Option(
            None, help="Of the texts in a feed: en for Google, ru for Yandex, unless told."
        ),
        replace_texts: bool = typer.Option(False, "--replace-texts", help="Also where the feed has texts of its own."),
        keep_pictures: bool = typer.Option(
            False, "--keep-pictures", help="The feed's first picture becomes an additional one."
        ),
        out: str | None = OutOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Hand a job's results over: a table of all items, or the merchant's feed with our pictures and texts."""
        wanted = check(kind, only, to, feed, approved)
        session = reopen(job, out, load_settings(broker=broker, endpoint_url=endpoint_url))
        columns = Columns(session.job.recipe, base_url)
        if feed is not None and base_url is None:
            raise UsageError("a feed needs links: give --base-url, where the output storage is served")
        passed: Counter[str] = Counter()
        results = chosen(session, wanted, read_keys(approved) if approved else None, passed)
        with target(to) as file:
            if feed is None:
                rows = 0

                def counted() -> Iterator[dict[str, object]]:
                    nonlocal rows
                    for result in results:
                        rows += 1
                        yield columns.row(result)

                write_table(kind, counted(), columns, file)
                err.print(f"{rows} rows", soft_wrap=True)
            else:
                options = FeedOptions(on, language, replace_texts, keep_pictures)
                told = join(kind, feed, results, columns, options, file)
                err.print(f"{told.joined} of {told.items} items of the feed joined", soft_wrap=True)
                for why, number in told.left_out.items():
                    err.print(f"  left out: {number} ({why})", soft_wrap=True)
            if passed:
                rest = ", ".join(f"{number} {outcome}" for outcome, number in passed.items())
                err.print(f"not among them: {rest}", soft_wrap=True)
            if feed is not None and not told.joined:
                msg = f"nothing was joined, and {to} is as it was: the manifest's `id`, or else the key, must be what the feed has as {on!r} (--on)"
                raise VitrinaError(msg)
        return 0
