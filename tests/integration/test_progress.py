"""What the broker keeps of a job, and for how long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shared.keys import STAGES
from shared.progress import JOBS, KEEP_SECONDS, Failure, Progress, known_jobs

if TYPE_CHECKING:
    from redis import Redis


def test_a_job_may_take_longer_than_its_traces_are_kept(client: Redis) -> None:
    """Of the jobs that began long ago, those that Redis has forgotten are named no more."""
    Progress(client, "long").begin("memory://out")
    began = time.time() - 2 * KEEP_SECONDS
    client.zadd(JOBS, {"long": began, "over": began})
    names = known_jobs(client)
    assert "long" in names
    assert "over" not in names
    Progress(client, "long").drop()


def test_nothing_of_a_dropped_job_stays_for_ever(client: Redis) -> None:
    """A worker that still had its messages counts their starts and ends; Redis forgets those in time."""
    progress = Progress(client, "purged")
    progress.begin("memory://out")
    for name in client.keys("vitrina:job:purged:*"):
        assert client.ttl(name) > 0
    progress.drop()
    for stage in STAGES:
        progress.attempt(stage, 3)
        progress.finish(stage, 3, ran=True, review=True)
    progress.attempt("captioning", 4)
    progress.fail(Failure(4, "4.jpg", "captioning", "unreadable", "cut short"))
    left = client.keys("vitrina:job:purged:*")
    assert len(left) > 5
    assert [name for name in left if client.ttl(name) < 0] == []
