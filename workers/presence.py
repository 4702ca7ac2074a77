"""A worker shows itself in Redis while it lives, so that `vitrina status` can tell how many of each stage are there."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from shared.connection import connect
from shared.errors import BrokerError
from shared.keys import STAGES
from shared.presence import EVERY_SECONDS, announce, leave

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from celery import Celery

    from shared.settings import Settings

log = logging.getLogger(__name__)


class Presence:
    """A thread of its own: what the worker is busy with does not hide it."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._names: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="presence", daemon=True)

    def start(self, sender: Any, **_: Any) -> None:
        """Show the worker from now on; called by Celery when it is ready."""
        queues = self._app.amqp.queues.consume_from
        self._names = [f"{stage}@{sender.hostname}" for stage in STAGES if stage in queues]
        self._client = connect(self._settings)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether Celery has said that the worker takes messages."""
        return bool(self._names)

    def close(self, **_: Any) -> None:
        """Say goodbye."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        while not self._stop.is_set():
            self._each(announce)
            self._stop.wait(EVERY_SECONDS)
        self._each(leave)

    def _each(self, do: Callable[[redis.Redis, str], None]) -> None:
        try:
            for name in self._names:
                do(self._client, name)
        except BrokerError as error:
            log.debug("not shown: %s", error)  # the worker itself says that the broker is away
