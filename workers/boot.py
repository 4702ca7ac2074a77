"""Puts a worker together: application, runners, tasks, and what happens at its start and its end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from celery import concurrency
from celery.concurrency.thread import TaskPool as Threads
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from shared import tracing
from shared.broker import make_app
from shared.connection import connect
from shared.errors import BrokerError, UsageError, VitrinaError
from shared.keys import STAGES, StageName
from shared.logs import configure_logging, quiet_root_warning
from shared.plan import chosen
from shared.probe import Probe
from shared.queues import depths
from shared.recipe import Recipe
from workers import metrics
from workers.events import PacedEvents
from workers.outage import Outage
from workers.presence import Presence
from workers.quarantine import Quarantine
from workers.runner import Runner
from workers.tasks import Guard, register, stopping
from workers.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from shared.recipe import ModelSection
    from shared.settings import Settings
    from workers.stage import Model

CONFIG_STATUS = 78
"""Exit status when a worker cannot start as configured (EX_CONFIG): a supervisor should not try again."""

LOAD_STATUS = 70
"""Exit status when a model fails to load for a reason of its own (EX_SOFTWARE)."""

log = logging.getLogger(__name__)


def _leave(status: int) -> NoReturn:
    logging.shutdown()
    os._exit(status)


def _require_threads(pool: Any) -> None:
    """Refuse Celery's other pools. Raises `UsageError`."""
    if concurrency.get_implementation(pool) is not Threads:
        # A process of prefork's has the models, but not the threads that run them; solo renews no lease while a task runs.
        raise UsageError("a worker is one process with many threads: leave out --pool, or give --pool threads")


class Process:
    """One worker process: what it is made of, and what it does at its start and its end."""

    def __init__(
        self, settings: Settings, make: Callable[[StageName, ModelSection, Settings], Model[Any, Any]]
    ) -> None:
        self._settings = settings
        self._name = ""
        # Quick: the watchdog, which asks, must not be held up by a broker that is silent.
        self._client = connect(settings, quick=True)
        self.app = make_app(settings)
        self._runners: dict[StageName, Runner] = {
            stage: Runner(stage, settings, make=make, stopping=stopping.is_set) for stage in STAGES
        }
        self._watchdog = Watchdog(
            task_deadline=settings.task_deadline,
            stall_deadline=settings.stall_deadline,
            waiting=self._messages_wait,
            heartbeat=settings.heartbeat_file,
        )
        self._consumer: Any = None
        # Celery's, once it takes messages.
        self._presence = Presence(self.app, settings)
        outage = Outage(settings.outage_patience)
        metrics.PAUSED.set_function(lambda: outage.down)
        self._tracing = tracing.from_environment()
        guard = Guard(Quarantine(stopping.is_set), outage, self._watchdog, self._tracing)
        register(self.app, self._runners, guard)
        self.app.steps["consumer"].add(PacedEvents)

    def log(self, **_: Any) -> None:
        """Log as the settings say, from before the models are loaded; Celery asks for it a second time."""
        configure_logging(self._settings, worker=self._name)

    def load(self, sender: Any, **_: Any) -> None:
        """Answer probes and beat, then load the models of the queues this worker serves; end the process where that cannot be."""
        # Celery's signals would swallow an exception, and the start go on without a model.
        try:
            self._name = str(sender.hostname)
            self.log()
            _require_threads(sender.pool_cls)
            self._watchdog.start()
            if self._settings.metrics_port:
                Probe(self._settings.metrics_port, alive=lambda: self._watchdog.alive, ready=self._ready)
            recipe = Recipe.load(self._settings.preload) if self._settings.preload else Recipe()
            for stage in STAGES:
                if stage in self.app.amqp.queues.consume_from:
                    metrics.begin(stage)
                    with self._watchdog.loading():
                        self._runners[stage].models.get(chosen(recipe, stage))
        except VitrinaError as error:
            log.critical("%s", error, extra={"action": "start"})
            _leave(CONFIG_STATUS)
        except ImportError as error:
            log.critical("%s: install vitrina[worker,production]", error, extra={"action": "start"})
            _leave(CONFIG_STATUS)
        except Exception:  # of any kind: libraries
            log.critical("the model does not load", exc_info=True, extra={"action": "start"})
            _leave(LOAD_STATUS)

    def begin(self, sender: Any, **_: Any) -> None:
        """Show the worker and watch over it, now that it takes messages."""
        self._consumer = sender
        self._presence.start(sender)
        self._watchdog.expect_tasks()

    def stop(self, **_: Any) -> None:
        """Finish the batch that runs, and hand back everything else; a second request ends the worker at once."""
        # What it then holds is handed out again when its leases run out.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: _leave(128 + signal.SIGTERM))
        stopping.set()
        for runner in self._runners.values():
            runner.models.hand_back()

    def close(self, **_: Any) -> None:
        """Take leave."""
        self._watchdog.close()
        self._presence.close()
        for runner in self._runners.values():
            runner.close()
        if self._tracing:
            self._tracing.close()

    def _ready(self) -> bool:
        return self._presence.ready and not stopping.is_set()

    def _messages_wait(self) -> bool:
        """Tell whether there is work: messages in this worker's queues, or such as it holds itself."""
        try:
            waiting = depths(self._client)
        except BrokerError:
            return False  # a worker without a broker waits for it
        consumer = self._consumer.task_consumer  # another one after each break; none in between
        held = getattr(consumer.channel, "due", 0) if consumer else 0  # our transport tells, others do not
        return held > 0 or any(waiting.get(queue) for queue in self.app.amqp.queues.consume_from)


def boot(settings: Settings, make: Callable[[StageName, ModelSection, Settings], Model[Any, Any]]) -> Celery:
    """Build the application with its three tasks. Models are loaded at the worker's start, those of its queues alone."""
    quiet_root_warning()
    try:
        process = Process(settings, make)
    except UsageError as error:  # an address that is none
        sys.stderr.write(f"vitrina: {error}\n")
        sys.exit(CONFIG_STATUS)
    # Not weak: nothing else holds the process.
    setup_logging.connect(process.log, weak=False)
    worker_init.connect(process.load, weak=False)
    worker_ready.connect(process.begin, weak=False)
    worker_shutting_down.connect(process.stop, weak=False)
    worker_shutdown.connect(process.close, weak=False)
    return process.app
