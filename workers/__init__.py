"""The Celery app, the three stages and their models."""

from __future__ import annotations

import os

# ONNX Runtime reports its use to its maker, and writes an id of the machine below HOME, as soon as anything imports it, diffusers for one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
