"""The workers' entry point: `celery -A workers.app worker -Q segmentation`.

The one place on this side that builds the settings. A worker loads the models of its own queues before it reports ready.
"""

from __future__ import annotations

from shared.settings import Settings
from workers.boot import boot
from workers.room import make_fitting

app = boot(Settings(), make_fitting)
