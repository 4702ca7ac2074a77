"""Logs: one line a record, whatever a library or a name puts in it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from shared.logs import BrokerWords, JsonFormatter, TextFormatter


def record(message: str, *args: Any, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("celery", logging.ERROR, __file__, 1, message, args, None)
    made.__dict__.update(fields)
    return made


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_message_of_several_lines_is_one(formatter: logging.Formatter) -> None:
    """Without literal line breaks in it."""
    line = formatter.format(record("lost %s.\n  Trying again\r\n", "it"))
    assert "lost it. Trying again" in line
    assert "\n" not in line
    assert "\\n" not in line


def test_a_name_cannot_forge_a_line() -> None:
    """Nor hide anything by control characters; spaces within a name stay."""
    line = TextFormatter().format(
        record("done %s", "a  b\x1b[2K\n12:00:00 ERROR c.jpg", stage="captioning", seconds=0.3)
    )
    assert line.endswith("captioning done a  b\\x1b[2K 12:00:00 ERROR c.jpg 0.3s")
    assert len(line.splitlines()) == 1


def test_the_stable_fields_are_in_the_json() -> None:
    """With the traceback as a field, so that the line stays one."""
    try:
        int("cut\nshort")
    except ValueError:
        made = record("failed", action="failed", job="j", key="a.jpg")
        made.exc_info = sys.exc_info()
    made.created, made.msecs = 1e9 + 0.0625, 62.5
    line = JsonFormatter(worker="segmentation@gpu-1").format(made)
    row = json.loads(line)
    assert (row["time"], row["worker"]) == ("2001-09-09T01:46:40.062Z", "segmentation@gpu-1")
    assert (row["action"], row["job"], row["key"], row["level"]) == ("failed", "j", "a.jpg", "ERROR")
    assert "ValueError" in row["traceback"]
    assert "\n" not in line


def test_a_broker_that_is_away_is_told_in_our_words() -> None:
    """What is the matter, that the worker waits, and when it tries next."""
    said = record(
        "consumer: Cannot connect to %s: %s.\n%s\n", "shared.transport:T://", "refused.", "Trying again in 2 s (1/None)"
    )
    assert BrokerWords().filter(said)
    assert (
        TextFormatter()
        .format(said)
        .endswith(
            "the broker does not answer: refused; the worker waits for it and then goes on by itself. Trying again in 2 s (1)"
        )
    )
    other = record("ready")
    assert BrokerWords().filter(other)
    assert other.getMessage() == "ready"
