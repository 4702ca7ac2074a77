"""A worker shows itself in Redis while it lives: `vitrina status` tells how many of each stage are there, an autoscaler how many have work."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from celery.worker import state

from shared.connection import connect
from shared.errors import BrokerError
from shared.keys import STAGES
from shared.presence import EVERY_SECONDS, announce, leave
from workers.tasks import stopping

if TYPE_CHECKING:
    from celery import Celery

    from shared.keys import StageName
    from shared.settings import Settings

log = logging.getLogger(__name__)


class Presence:
    """A thread of its own: what the worker is busy with does not hide it."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._stages: list[StageName] = []
        self._host = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="presence", daemon=True)

    def start(self, sender: Any, **_: Any) -> None:
        """Show the worker from now on; called by Celery when it is ready."""
        queues = self._app.amqp.queues.consume_from
        self._stages = [stage for stage in STAGES if stage in queues]
        self._host = sender.hostname
        self._client = connect(self._settings)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether Celery has said that the worker takes messages."""
        return bool(self._stages)

    def close(self, **_: Any) -> None:
        """Say goodbye."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _busy(self) -> bool:
        # Begun, or about to be: what waits for its next try is none. Who is told to stop is no longer one of those that an autoscaler counts.
        return bool(len(state.reserved_requests)) and not stopping.is_set()

    def _show(self) -> None:
        while not self._stop.is_set():
            try:
                for stage in self._stages:
                    announce(self._client, stage, self._host, busy=self._busy)
            except BrokerError as error:
                log.debug("not shown: %s", error)  # the worker itself says that the broker is away
            self._stop.wait(EVERY_SECONDS)
        try:
            for stage in self._stages:
                leave(self._client, stage, self._host)
        except BrokerError as error:
            log.debug("still shown: %s", error)
