"""Worker events, sent a few times a second rather than one by one: Flower needs them, and they must not cost a quarter of the worker."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker.consumer.events import Events

FLUSH_SECONDS = 0.25
"""Longest wait of an event; what Flower shows is that much older."""
BUFFER = 250
"""Events that are sent at once without waiting: a third of a megabyte."""


class PacedEvents(bootsteps.StartStopStep):  # type: ignore[misc] # Celery ships no types
    """Follows Celery's own step, which flushes at every turn of the event loop."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._due = False

    def start(self, consumer: Any) -> None:
        """Take over the flushing of a connection's new dispatcher."""
        dispatcher = consumer.event_dispatcher
        if consumer.hub is None or dispatcher is None:
            return
        self._due = False

        def flush() -> None:
            self._due = False
            if consumer.event_dispatcher is dispatcher:  # else it has been closed, and its buffer handed on
                dispatcher.flush()

        def later() -> None:
            if not self._due:
                self._due = True
                consumer.hub.call_later(FLUSH_SECONDS, flush)

        dispatcher.buffer_limit = BUFFER
        dispatcher.on_send_buffered = later
