"""Libraries that report to their makers are kept from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cv2", reason="the worker's libraries are not installed")


@pytest.mark.parametrize("first", ["import onnxruntime", "import diffusers"])
def test_a_worker_writes_nothing_at_home_and_reports_to_nobody(tmp_path: Path, first: str) -> None:
    """ONNX Runtime does both at its import, unless it is told otherwise before."""
    program = f"import workers.boot; {first}; import onnxruntime as o; o.InferenceSession"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", program], env=environment | {"HOME": str(tmp_path)}, check=True, capture_output=True
    )
    assert not list(tmp_path.rglob("*"))
