"""What all tests share."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from skips import pytest_make_collect_report, pytest_runtest_makereport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]

# A machine that is busy for a moment is no fault of what is tested.
settings.register_profile("busy machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machines")


def _stays_here(family: int, address: Any) -> bool:
    if family not in {socket.AF_INET, socket.AF_INET6}:
        return True
    host = str(address[0]).partition("%")[0]
    return host in {"", "localhost"} or ip_address(host).is_loopback


@pytest.fixture(autouse=True, scope="session")
def _network_is_away() -> Iterator[None]:
    """Fail whatever, in a test's own process, turns to another machine: tests are free of the network."""

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: socket.socket, address: Any) -> Any:
            if not _stays_here(self.family, address):
                pytest.fail(f"a test connects to {address!r}, which is another machine")
            return connect(self, address)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        yield
