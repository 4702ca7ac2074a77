"""The workers' entry point: `celery -A workers.app worker -P threads -Q segmentation`.

The one place on this side that builds the settings. A worker loads the models of its own queues before it reports ready.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery.signals import setup_logging, worker_init, worker_shutdown

from shared.broker import make_app
from shared.errors import VitrinaError
from shared.keys import STAGES
from shared.logs import configure_logging
from shared.plan import model_name
from shared.recipe import Recipe
from shared.settings import Settings
from workers.runner import Runner
from workers.tasks import register

CONFIG_STATUS = 78
"""Exit status when a worker cannot start as configured (EX_CONFIG): a supervisor should not try again."""

log = logging.getLogger(__name__)
settings = Settings()
app = make_app(settings)
runners = {stage: Runner(stage, settings) for stage in STAGES}
register(app, runners)


@setup_logging.connect
def _logging(**_: Any) -> None:
    configure_logging(settings)


@worker_init.connect
def _load_models(**_: Any) -> None:
    served = set(app.amqp.queues.consume_from)
    for stage, runner in runners.items():
        if stage in served:
            try:
                runner.model(model_name(Recipe(), stage))
            except VitrinaError as error:
                log.critical("%s", error, extra={"action": "start", "stage": stage})
                sys.exit(CONFIG_STATUS)


@worker_shutdown.connect
def _close(**_: Any) -> None:
    for runner in runners.values():
        runner.close()
