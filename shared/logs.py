"""Logging: one line a record on stderr, as text or JSON, with stable fields."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from shared.printable import printable

if TYPE_CHECKING:
    from shared.settings import Settings

FIELDS = ("action", "job", "key", "stage", "seconds", "reason", "batch")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}


def _message(record: logging.LogRecord) -> str:
    """Return the message as one line, whatever a library put in it."""
    return re.sub(r"\s*[\r\n]+\s*", " ", record.getMessage()).strip()


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO segmentation done shoes/1.jpg 0.31s` for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and below it the traceback where there is one.

        What cannot be printed is escaped, so that a strange name cannot forge another line.
        """
        fields = _fields(record)
        message = printable(_message(record))
        parts = [time.strftime("%H:%M:%S", time.localtime(record.created)), record.levelname]
        parts += [str(fields["stage"])] if "stage" in fields else []
        parts += [message]
        parts += [f"{fields['seconds']}s"] if "seconds" in fields else []
        line = " ".join(parts)
        return line + "\n" + printable(self.formatException(record.exc_info), keep="\n") if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line for machines."""

    def __init__(self, worker: str = "") -> None:
        """Name the `worker` in each line: those of many come together in one place."""
        super().__init__()
        self._worker = {"worker": worker} if worker else {}

    def format(self, record: logging.LogRecord) -> str:
        """Write one object; the time is UTC, to the millisecond."""
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            **self._worker,
            "logger": record.name,
            "message": _message(record),
            **_fields(record),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


class BrokerWords(logging.Filter):
    """Says in our words what Celery's consumer says, two lines long, of a broker that is away."""

    LOGGER = "celery.worker.consumer.consumer"

    def filter(self, record: logging.LogRecord) -> bool:
        """Reword the record and let it pass."""
        if str(record.msg).startswith("consumer: Cannot connect") and isinstance(record.args, tuple):
            _, error, step = record.args
            record.msg = "the broker does not answer: %s; the worker waits for it and then goes on by itself. %s"
            record.args = (str(error).rstrip("."), str(step).replace("/None", ""))
        return True


def quiet_root_warning() -> None:
    """Silence Celery's advice against root: it is given for pickled messages, which we refuse; our containers run as another user anyway."""
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")


def configure_logging(settings: Settings, *, worker: str = "") -> None:
    """Send every logger's records to stderr in the chosen format, JSON with the name of the `worker` that writes them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for noisy in ("botocore", "boto3", "urllib3", "celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    consumer = logging.getLogger(BrokerWords.LOGGER)
    if not any(isinstance(known, BrokerWords) for known in consumer.filters):
        consumer.addFilter(BrokerWords())
