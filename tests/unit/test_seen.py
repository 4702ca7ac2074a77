"""Which keys were seen: on disk, and gone with whoever asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from producer.seen import Seen

_SCRIPT = """
import sys
from producer.seen import Seen

with Seen() as seen:
    for start in range(0, 200_000, 500):
        seen.add([(f"{number}.jpg", "") for number in range(start, start + 500)])
    print("filled", flush=True)
    sys.stdin.read()
"""


def test_verdicts() -> None:
    """Within one call and across calls."""
    with Seen() as seen:
        assert seen.add([("a", "1"), ("b", "1"), ("a", "1"), ("b", "2")]) == ["new", "new", "same", "otherwise"]
        assert seen.add([("b", "1"), ("c", "")]) == ["same", "new"]


def test_a_disk_without_room_is_told_with_what_to_do() -> None:
    """A list of a hundred million keys needs some gigabytes."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n{_SCRIPT}"
    process = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert "filled" not in process.stdout
    assert "UsageError: no room for temporary tables" in process.stderr
    assert "set TMPDIR" in process.stderr


def test_a_killed_producer_leaves_no_file(tmp_path: Path) -> None:
    """Six hundred megabytes of a list of ten million would fill the disk within a few restarts."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"filled\n"
        places = [os.fspath(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert any(place.startswith(os.fspath(tmp_path)) for place in places)  # it is on disk, not in memory
        process.send_signal(signal.SIGKILL)
    assert not list(tmp_path.iterdir())
