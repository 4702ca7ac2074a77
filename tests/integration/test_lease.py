"""A right that one process holds at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from producer.embedded import Broker
from shared.connection import connect
from shared.errors import LeaseLostError
from shared.lease import Lease, is_held
from shared.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def lost(lease: Lease) -> bool:
    """Tell whether a lease's holder knows that another has it, within a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            lease.check()
        except LeaseLostError:
            return True
        time.sleep(0.02)
    return False


def test_who_has_lost_a_lease_does_not_get_it_back_in_silence(tmp_path: Path) -> None:
    """What the other did while it had it is not known here: who held it first ends, though the other has ended by then."""
    with (
        Broker(tmp_path) as broker,
        connect(Settings(broker=broker.url)) as client,
        Lease(client, "job", "another has the job", seconds=0.3) as first,
    ):
        first.check()
        # It was stopped for longer than it has the lease, which the other has taken since.
        client.set("vitrina:lease:job", "the other")
        assert lost(first)
        client.delete("vitrina:lease:job")
        time.sleep(0.3)  # as long as it takes to be renewed three times
        with pytest.raises(LeaseLostError, match="another has the job"):
            first.check()
        assert not is_held(client, "job")


def test_who_was_stopped_sees_first_whether_the_lease_is_still_its_own(tmp_path: Path) -> None:
    """Without waiting for the thread that renews, which may not have run since: by the time that has passed."""
    with Broker(tmp_path) as broker, connect(Settings(broker=broker.url)) as client:
        lease = Lease(client, "job", "another has the job", seconds=0.1)
        assert lease.acquire()
        time.sleep(0.2)
        lease.check()  # nobody has taken it
        client.set("vitrina:lease:job", "the other")
        time.sleep(0.2)
        with pytest.raises(LeaseLostError, match="another has the job"):
            lease.check()


def test_what_takes_long_does_not_cost_the_lease(tmp_path: Path) -> None:
    """A keeper whose storage takes longer for a page than its lease lasts would hand over, and take over, for ever."""
    with Broker(tmp_path) as broker, connect(Settings(broker=broker.url)) as client:
        lease, other = (Lease(client, "job", "another has the job", seconds=0.5) for _ in range(2))
        assert lease.acquire()
        with lease.kept(at_most=60):
            time.sleep(1.5)
            assert not other.acquire()
            lease.check()
        assert is_held(client, "job")  # its next look comes before anybody else's
        time.sleep(1)
        assert other.acquire()


def test_who_hangs_has_the_lease_no_longer_than_a_step_may_take(tmp_path: Path) -> None:
    """A storage that never answers would keep the others from the work for as long as the process lives."""
    with Broker(tmp_path) as broker, connect(Settings(broker=broker.url)) as client:
        lease, other = (Lease(client, "job", "another has the job", seconds=0.5) for _ in range(2))
        assert lease.acquire()
        with lease.kept(at_most=1):
            for _ in range(2):
                time.sleep(0.8)
                assert lease.acquire()  # it gets on
            time.sleep(2.5)
            assert other.acquire()
