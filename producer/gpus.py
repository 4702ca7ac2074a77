"""The GPUs of this machine: how much memory they have, and which of them a worker takes. torch is not imported."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import quote

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def visible() -> list[str]:
    """Return the GPUs that a process here may use, as CUDA_VISIBLE_DEVICES names them: those it names, else all that the driver knows."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return [str(number) for number in range(len(_memories()))]
    return [name for name in allowed.split(",") if name]


def take(folder: Path, gpus: Sequence[str]) -> str:
    """Take the GPU with the fewest workers and return its name.

    It is taken as long as this process lives, or the program that it becomes: by locks on files in `folder`, which the containers of a machine
    can share. Raises `UsageError`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, name in ((place, name) for place in itertools.count() for name in gpus):
            file = os.open(folder / f"{quote(name, safe='')}.{place}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            os.set_inheritable(file, True)
            return name
    except OSError as error:
        raise UsageError(
            f"cannot note who uses which GPU: {error}: set VITRINA_GPU_CLAIMS to a folder to write to, or VITRINA_DEVICE to a GPU"
        ) from None
    raise AssertionError  # the places never end


def device_memory() -> int | None:
    """Return the bytes of the largest GPU, as its driver says; None without one."""
    return max(_memories(), default=None)


def _memories() -> list[int]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool
            [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return [int(line) * 2**20 for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
