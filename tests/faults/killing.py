"""Workers killed, stopped, asked to end in a storm, and held up."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import time
from typing import TYPE_CHECKING

import psutil
from lab import Lab, Outcome, Recoveries

from shared.keys import STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from producer.embedded import Worker
    from producer.session import Session
    from shared.storage import Storage

MEAN_RECOVERY = 15.0
"""Seconds within which a killed worker's items are to run again, on average."""


def pictures(storage: Storage) -> dict[str, str]:
    """Return a digest of every output; of a record without what differs from run to run: times, and which job made it."""
    found = {}
    for stat in storage.list():
        if stat.key.startswith("jobs/"):
            continue
        data = storage.get(stat.key).data
        if stat.key.endswith(".json"):
            record = json.loads(data)
            for stage in record["stages"].values():
                stage["seconds"] = {}
            data = json.dumps(record, sort_keys=True).encode()
        found[stat.key] = hashlib.sha256(data).hexdigest()
    return found


def kills(folder: Path, *, items: int = 5000, kills: int = 200, seconds: float = 600) -> Outcome:
    """SIGKILL random workers at random moments while real stages work; outputs are byte for byte those of a calm run."""
    # The window keeps items to come until the last kill is due, however slowly this process gets on.
    with Lab(folder, each=2, app="workers.app", window=min(400, items // 8)) as lab:
        lab.draw(items)
        session = lab.session()
        recoveries = Recoveries(lab.client)
        killed = 0
        upcoming = time.monotonic()

        def kill() -> None:
            nonlocal killed, upcoming
            recoveries.look()
            counts = session.progress.counts()
            # Spread over the whole job, with enough of it left for the last.
            if killed < kills and counts.done >= items * killed / (kills + 5) and time.monotonic() > upcoming:
                ready = [worker for worker in lab.workers if b" ready." in worker.output()]
                if not ready:
                    return  # all of them are starting again
                victim = lab.chance.choice(ready)
                os.kill(victim.pid, signal.SIGKILL)
                recoveries.killed(session, stage_of(victim))
                killed += 1
                upcoming = time.monotonic() + lab.chance.uniform(0.05, 0.6)

        lab.run(session, kill, seconds=seconds)
        recoveries.look()
        outcome = lab.audit(session)
        chaotic = pictures(session.destination)
        for worker in lab.workers:
            worker.stop()
        outcome.expect("every kill was made", killed == kills)
        outcome.expect("outputs equal those of a calm run", chaotic == calm(lab, session))
    outcome.slowest_recovery_seconds = round(max(recoveries.seconds, default=0), 1)
    mean = round(statistics.mean(recoveries.seconds), 1) if recoveries.seconds else 0.0
    outcome.also = {"kills": killed, "mean_recovery_seconds": mean}
    outcome.expect_within(MEAN_RECOVERY, mean, "items of killed workers run again, on average,")
    return outcome


def calm(lab: Lab, session: Session) -> dict[str, str]:
    """Make the same photos again, undisturbed, into another folder, and return their digests."""
    from shared.storage import open_storage  # noqa: PLC0415 - used here alone

    for worker in lab.workers:
        worker.start()
    again = lab.session(session.job.recipe, out=open_storage(str(lab.folder / "calm"), lab.settings))
    lab.run(again, seconds=600)
    return pictures(again.destination)


def stage_of(worker: Worker) -> str:
    """Return the stage that a worker serves."""
    return next(stage for stage in STAGES if worker.name.startswith(stage))


def signals(folder: Path, *, items: int = 600, storms: int = 30, seconds: float = 240) -> Outcome:
    """SIGTERM in storms, SIGSTOP for longer than the lease, a task longer than the lease, one that holds the interpreter's lock."""
    with Lab(folder, each=2, visibility_timeout=4, batch_deadline=120) as lab:
        for number in range(items):
            lab.say(f"{number:05d}", "slow:0.1")
        lab.say("long", "slow:9")  # over two leases: renewed, not handed out again
        lab.say("locked", "gil:6")
        session = lab.session()
        sent, drains = 0, []
        stopped: list[tuple[float, Worker]] = []
        upcoming = time.monotonic() + 1

        def disturb() -> None:
            nonlocal sent, upcoming
            now = time.monotonic()
            for since, worker in list(stopped):
                if now - since > 2 * lab.settings.visibility_timeout:
                    os.kill(worker.pid, signal.SIGCONT)
                    stopped.remove((since, worker))
            if now < upcoming or sent >= storms:
                return
            upcoming = now + lab.chance.uniform(0.3, 1.2)
            idle = [worker for worker in lab.workers if worker.running and worker not in [w for _, w in stopped]]
            victim = lab.chance.choice(idle)
            if sent % 6 == 5:
                os.kill(victim.pid, signal.SIGSTOP)
                stopped.append((now, victim))
            else:
                os.kill(victim.pid, signal.SIGTERM)
                process = psutil.Process(victim.pid)
                drains.append((now, process))
            sent += 1

        lab.run(session, disturb, seconds=seconds)
        for _, worker in stopped:
            os.kill(worker.pid, signal.SIGCONT)
        outcome = lab.audit(session)
        outcome.expect("every signal was sent", sent == storms)
        outcome.expect("nothing failed", outcome.failed == 0)
        outcome.also = {"signals": sent}
    return outcome
