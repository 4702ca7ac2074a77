"""The test suite's own promises: it uses no network, and leaves nothing out quietly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0)])
def test_a_test_that_turns_to_another_machine_fails(address: tuple[str, int]) -> None:
    """Whatever catches the error of a network that is not there: this is none."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    for method in ("connect", "connect_ex"):
        with (
            socket.socket(family) as ours,
            pytest.raises(pytest.fail.Exception, match=r"connects to .*, which is another machine"),
        ):
            getattr(ours, method)(address)


def test_loopback_is_no_network() -> None:
    """Brokers and servers of the tests answer there."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("variable", ["CI", "VITRINA_CI", None])
def test_in_ci_a_skip_is_a_failure_unless_ci_may_lack_it(tmp_path: Path, variable: str | None) -> None:
    """In a test, by a mark, and in a whole module; at a developer's desk a skip is a skip."""
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('not_there')\n")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_weights(): pytest.skip('model u2netp is missing')\n"
        "@pytest.mark.skipif(True, reason='no reason')\ndef test_mark(): ...\n"
        "def test_browser(): pytest.skip('needs Chromium')\n"
        "@pytest.mark.xfail\ndef test_known(): assert False\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in {"CI", "VITRINA_CI"}}
    options = ["-q", "-p", "skips", "-p", "no:cacheprovider", "-c", os.devnull, "--continue-on-collection-errors"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(TESTS)} | ({variable: "true"} if variable else {}),
    )
    if variable is None:
        assert (done.returncode, "4 skipped, 1 xfailed" in done.stdout) == (0, True), done.stdout
        return
    assert done.returncode != 0
    for wanted in ("not_there", "u2netp is missing", "no reason"):
        assert "has, or can install, what it wants: " in done.stdout
        assert wanted in done.stdout
    assert "Chromium" not in done.stdout
