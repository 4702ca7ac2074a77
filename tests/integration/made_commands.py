"""Commands as a user types them, and a photo to give them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from producer.cli import main

if TYPE_CHECKING:
    import pytest

VITRINA = [sys.executable, "-m", "producer.cli"]
ROOT = Path(__file__).parents[2]


def vitrina(
    *arguments: str, timeout: float = 150, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VITRINA, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env=os.environ | (env or {}),
    )


def vitrina_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process, where faults can be put in its way, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["vitrina", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def draw_mug(path: Path, size: tuple[int, int] = (320, 240)) -> None:
    """Draw a product that any saliency model finds: a blue mug on a light table."""
    image = Image.new("RGB", size, "#e9e4da")
    pen = ImageDraw.Draw(image)
    middle, side = size[0] // 2, size[1] // 3
    pen.ellipse(
        (middle + side // 2, size[1] // 2 - side // 2, middle + side, size[1] // 2 + side // 3),
        outline="#12306e",
        width=max(2, side // 8),
    )
    pen.rounded_rectangle(
        (middle - side // 2, size[1] // 2 - side, middle + side // 2, size[1] // 2 + side), side // 8, fill="#1d4ed8"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG" if path.suffix == ".png" or "really" in path.name else "JPEG")


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]
