"""Instant workers, one of which loses a message once: `celery -A made_leaks worker …`. The file `VITRINA_TEST_LEAK` names tells that it has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from workers.tasks import StageTask
from workers.testing import app

__all__ = ["app"]

LEAKED = Path(os.environ["VITRINA_TEST_LEAK"])
run = StageTask.run


def leak_once(self: StageTask, message: dict[str, Any]) -> None:
    """Raise what Celery's pool does not get over, before anything of ours can catch it."""
    if not LEAKED.exists():
        LEAKED.touch()
        raise MemoryError
    run(self, message)


StageTask.run = leak_once
