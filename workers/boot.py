"""Puts a worker together: application, runners, tasks, and what happens at its start and its end."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from shared.broker import make_app
from shared.errors import UsageError, VitrinaError
from shared.keys import STAGES, StageName
from shared.logs import configure_logging, quiet_root_warning
from shared.plan import chosen
from shared.recipe import Recipe
from workers import metrics
from workers.events import PacedEvents
from workers.presence import Presence
from workers.runner import Runner
from workers.tasks import register, stopping

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


def boot(settings: Settings, make: Callable[[StageName, ModelSection, Settings], Model[Any, Any]]) -> Celery:
    """Build the application with its three tasks. Models are loaded at the worker's start, those of its queues alone."""
    quiet_root_warning()
    app = make_app(settings)
    try:
        runners: dict[StageName, Runner] = {stage: Runner(stage, settings, make=make) for stage in STAGES}
    except UsageError as error:  # an address that is none
        sys.stderr.write(f"vitrina: {error}\n")
        sys.exit(CONFIG_STATUS)
    register(app, runners)
    app.steps["consumer"].add(PacedEvents)
    presence = Presence(app, settings)

    def load_models(**_: Any) -> None:
        # Celery's signals would swallow an exception, and the start go on without a model.
        try:
            metrics.serve(settings.metrics_port)
            recipe = Recipe.load(settings.preload) if settings.preload else Recipe()
            for stage in STAGES:
                if stage in app.amqp.queues.consume_from:
                    runners[stage].model(chosen(recipe, stage))
        except VitrinaError as error:
            log.critical("%s", error, extra={"action": "start"})
            _leave(CONFIG_STATUS)
        except ImportError as error:
            log.critical("%s: install vitrina[worker,production]", error, extra={"action": "start"})
            _leave(CONFIG_STATUS)
        except Exception:
            log.critical("the model does not load", exc_info=True, extra={"action": "start"})
            _leave(LOAD_STATUS)

    def close(**_: Any) -> None:
        for runner in runners.values():
            runner.close()

    # Not weak: nothing else holds these functions.
    setup_logging.connect(lambda **_: configure_logging(settings), weak=False)
    worker_init.connect(load_models, weak=False)
    worker_ready.connect(presence.start, weak=False)
    worker_shutting_down.connect(lambda **_: stopping.set(), weak=False)
    worker_shutdown.connect(presence.close, weak=False)
    worker_shutdown.connect(close, weak=False)
    return app
