"""A bare Celery application: three empty tasks in three queues, with Celery's own defaults. What the orchestration is compared with."""

from __future__ import annotations

import os

from celery import Celery

STAGES = ("one", "two", "three")

app = Celery("bare", broker=os.environ["BARE_BROKER"])
app.conf.task_routes = {stage: {"queue": stage} for stage in STAGES}
app.conf.task_ignore_result = True


def nothing(key: str) -> str:
    """Do nothing."""
    return key


for stage in STAGES:
    app.task(name=stage)(nothing)
