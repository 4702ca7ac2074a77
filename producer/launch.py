"""How a worker is started in a process of its own: its command line and its environment."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pydantic import SecretStr

from producer.gpus import visible
from shared.errors import UsageError
from shared.keys import QUEUES
from shared.plan import chosen
from shared.recipe import Recipe
from shared.settings import USUAL_THREADS

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.settings import Settings


def env_for(settings: Settings) -> dict[str, str]:
    """Return the settings as `VITRINA_*` variables for a child process. The one place where secrets are revealed."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    plain = {n: v.get_secret_value() if isinstance(v, SecretStr) else v for n, v in values.items()}
    return {f"VITRINA_{name.upper()}": str(value) for name, value in plain.items() if value is not None}


def worker_command(stage: StageName, settings: Settings, *, app: str = "workers.app") -> list[str]:
    """Return the command line of a stage's Celery worker.

    It is named after the stage, the GPU that it takes where there is one, and this process, which becomes or owns the worker: two of one stage
    on a host are told apart.
    """
    name = "-".join([stage, *_gpu(settings.device), str(os.getpid())]) + "@%h"
    queues = ",".join(queue for queue in QUEUES if queue.partition(".")[0] == stage)
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queues, "-n", name]
    # Workers need not know of each other: gossip sends every event of each to all, and mingling asks all at each start and waits for them.
    return [*command, "-P", "threads", "-c", str(threads_for(stage, settings)), "--without-gossip", "--without-mingle"]


def threads_for(stage: StageName, settings: Settings) -> int:
    """Return the task threads of a stage's worker: as set, else twice the batch of the model that it is to load."""
    if settings.threads:
        return settings.threads
    on_gpu = settings.device != "cpu" and bool(visible())
    batch = settings.max_batch
    if batch is None and on_gpu:
        try:
            recipe = Recipe.load(settings.preload) if settings.preload else Recipe()
            batch = chosen(recipe, stage).gpu_batch
        except UsageError:  # the worker says so itself when it starts
            batch = None
    return 2 * batch if batch else USUAL_THREADS


def _gpu(device: str) -> list[str]:
    """Return a word for the GPU that `auto`, `cuda` or `cuda:1` stands for: its number on this machine, or how its id begins; none without one."""
    kind, _, number = device.partition(":")
    gpus = visible() if kind in {"auto", "cuda"} else []
    place = int(number) if number.isdecimal() else 0
    return [f"gpu{gpu}" if gpu.isdecimal() else gpu.lower()[:12] for gpu in gpus[place : place + 1]]
