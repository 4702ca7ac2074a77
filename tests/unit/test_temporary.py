"""What is too large for memory goes to a temporary file."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from shared import temporary
from shared.storage.local import LocalStorage
from shared.temporary import KeptLines, sorted_names

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 1000])
def test_names_are_sorted_however_many_there_are(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Byte by byte, as keys are; in memory or out of it."""
    monkeypatch.setattr(temporary, "IN_MEMORY", 100)
    names = [b"%d\xff" % (place * 7919 % 1009) for place in range(number)]
    assert list(sorted_names(iter(names))) == sorted(names)


def test_a_flat_folder_of_any_size_is_listed_in_flat_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same order as a small one, folders and links in their places."""
    for number in range(6000):
        os.close(os.open(tmp_path / f"{number:05d} {'a long name ' * 12}.jpg", os.O_CREAT | os.O_WRONLY))
    (tmp_path / "00100").mkdir()
    (tmp_path / "00100" / "inside.jpg").touch()
    (tmp_path / "00200.jpg").symlink_to("/etc/hostname")
    storage = LocalStorage(str(tmp_path))
    expected = [stat.key for stat in storage.list()]
    assert expected == sorted(expected)
    assert {"00100/inside.jpg", "00200.jpg"} < set(expected)
    monkeypatch.setattr(temporary, "IN_MEMORY", 100)
    tracemalloc.start()
    try:
        found = sum(stat.key == key for stat, key in zip(storage.list(), expected, strict=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == len(expected)
    assert peak < 300_000  # the names alone are over a million


def test_lines_are_read_as_often_as_they_are_asked_for() -> None:
    """Also after a reader that left early."""
    lines = KeptLines([b"a\nb\n", b"", b"c\n"])
    assert next(iter(lines)) == b"a\n"
    for _ in range(2):
        assert list(lines) == [b"a\n", b"b\n", b"c\n"]


def test_a_disk_without_room_for_lines_is_told_with_what_to_do() -> None:
    """As for the other tables."""
    script = """
import os, resource, signal
from shared.temporary import KeptLines

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
KeptLines(os.urandom(100_000) for _ in range(50))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "UsageError: no room for temporary tables" in process.stderr
    assert "set TMPDIR" in process.stderr
