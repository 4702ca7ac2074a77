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


def test_who_has_lost_a_lease_does_not_get_it_back_in_silence(tmp_path: Path) -> None:
    """What the other did while it had it is not known here: who held it first ends, though the other has ended by then."""
    with Broker(tmp_path) as broker, connect(Settings(broker=broker.url)) as client:
        first, other = (Lease(client, "job", "another has the job", seconds=0.3) for _ in range(2))
        with first:
            first.check()
            client.delete("vitrina:lease:job")  # it was stopped for longer than it has the lease
            assert other.acquire()
            time.sleep(0.15)
            client.delete("vitrina:lease:job")
            time.sleep(0.3)
            with pytest.raises(LeaseLostError, match="another has the job"):
                first.check()
            assert not is_held(client, "job")
