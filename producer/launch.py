"""How a worker is started in a process of its own: its command line and its environment."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pydantic import SecretStr

from shared.keys import QUEUES

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

    It is named after the stage, its GPU where one was chosen, and this process, which becomes or owns the worker: two of one stage on a host
    are told apart.
    """
    gpu = settings.device.partition(":")[2] or os.environ.get("CUDA_VISIBLE_DEVICES", "")
    name = "-".join([stage, *([f"gpu{gpu}"] if gpu.isdigit() else []), str(os.getpid())]) + "@%h"
    queues = ",".join(queue for queue in QUEUES if queue.partition(".")[0] == stage)
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queues, "-n", name]
    return [*command, "-P", "threads", "-c", str(settings.threads), "--without-gossip", "--without-mingle"]
