"""Workers killed, stopped, asked to end in a storm, and held up."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
from lab import Lab, Outcome, Recoveries

from shared.keys import STAGES
from shared.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from producer.embedded import Worker
    from producer.session import Session
    from shared.storage import Storage

DRAIN = 10.0
"""Seconds within which a worker ends that is asked to: its batches take a tenth of one, starting Python and Celery up a few."""
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
        recoveries = Recoveries(lab)
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
        outcome = lab.audit(session)
        recoveries.look()
        chaotic = pictures(session.destination)
        for worker in lab.workers:
            worker.stop()
        outcome.expect("every kill was made", killed == kills)
        outcome.expect("all that ran in killed workers ran again", recoveries.over)
        outcome.expect("outputs equal those of a calm run", chaotic == calm(lab, session))
    outcome.slowest_recovery_seconds = round(max(recoveries.seconds, default=0), 1)
    mean = round(statistics.mean(recoveries.seconds), 1) if recoveries.seconds else 0.0
    outcome.also = {"kills": killed, "mean_recovery_seconds": mean}
    outcome.expect_within(MEAN_RECOVERY, mean, "items of killed workers run again, on average,")
    return outcome


def calm(lab: Lab, session: Session) -> dict[str, str]:
    """Make the same photos again, undisturbed, into another folder, and return their digests."""
    for worker in lab.workers:
        worker.start()
    again = lab.session(session.job.recipe, out=open_storage(str(lab.folder / "calm"), lab.settings))
    lab.run(again, seconds=600)
    return pictures(again.destination)


def stage_of(worker: Worker) -> str:
    """Return the stage that a worker serves."""
    return next(stage for stage in STAGES if worker.name.startswith(stage))


def signals(folder: Path, *, items: int = 600, storms: int = 30, seconds: float = 240) -> Outcome:
    """A task longer than the lease, one that holds the interpreter's lock; then SIGTERM in storms, twice to some, and SIGSTOP for longer than the lease."""
    with Lab(folder, each=2, visibility_timeout=4, batch_deadline=120) as lab:
        starts = held(lab)
        for number in range(items):
            lab.say(f"{number:05d}", "slow:0.2")
        session = lab.session()
        storm = Storm(lab, storms)
        lab.run(session, storm.disturb, seconds=seconds)
        storm.end()
        outcome = lab.audit(session)
        outcome.expect("every signal was sent", storm.sent == storms)
        outcome.expect("nothing failed", outcome.failed == 0)
        # Who holds the interpreter's lock can renew nothing: that task may be handed out again, and its work is found done.
        outcome.expect(f"a task whose lease is renewed is handed out once: {starts}", starts.get("long") == 1)
        drains, exits = max(storm.drains, default=0.0), max(storm.exits, default=0.0)
        outcome.also = {
            "signals": storm.sent,
            "slowest_drain_seconds": round(drains, 1),
            "slowest_exit_seconds": round(exits, 1),
        }
        outcome.expect_within(DRAIN, drains, "a worker that is asked to end does so")
        outcome.expect_within(DRAIN, exits, "a worker that is asked twice ends")
        return outcome


def held(lab: Lab) -> dict[str, int]:
    """Run photos that take longer than their leases, undisturbed, and return how often each was started.

    One after the other: who shares a worker with one that holds the interpreter's lock is not renewed either.
    """
    return {name: started(lab, name, word) for name, word in (("long", "slow:9"), ("locked", "gil:6"))}


def started(lab: Lab, name: str, word: str) -> int:
    """Run a photo alone, and return how often it was started."""
    lab.say(name, word)
    session = lab.session(out=open_storage(str(lab.folder / "held" / name), lab.settings))
    most = 0

    def look() -> None:
        nonlocal most
        number: Any = lab.client.hget(f"vitrina:job:{session.job.id}:attempts:{STAGES[0]}", "0")
        most = max(int(number or 0), most)

    lab.run(session, look, seconds=120)
    (lab.photos / name).unlink()
    return most


class Storm:
    """Signals to random workers at random moments, until enough were sent; how long those that were to end took."""

    def __init__(self, lab: Lab, signals: int) -> None:
        self._lab = lab
        self._left = signals
        self._upcoming = time.monotonic() + 1
        self._stopped: list[tuple[float, Worker]] = []
        self._ending: list[tuple[float, psutil.Process, list[float]]] = []
        self.sent = 0
        self.drains: list[float] = []
        """Seconds from SIGTERM to the end of the process."""
        self.exits: list[float] = []
        """The same where a second SIGTERM followed."""

    def disturb(self) -> None:
        """Send the next signal when it is time; wake whoever was stopped for long enough."""
        now = time.monotonic()
        for since, worker in list(self._stopped):
            if now - since > 2 * self._lab.settings.visibility_timeout:
                os.kill(worker.pid, signal.SIGCONT)
                self._stopped.remove((since, worker))
        for ending in list(self._ending):
            since, process, seconds = ending
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                seconds.append(now - since)
                self._ending.remove(ending)
        if now >= self._upcoming and self._left:
            self._upcoming = now + self._lab.chance.uniform(0.2, 0.6)
            self._send(now)

    def _send(self, now: float) -> None:
        busy = {worker.pid for _, worker in self._stopped} | {process.pid for _, process, _ in self._ending}
        idle = [worker for worker in self._lab.workers if worker.running and worker.pid not in busy]
        if not idle:
            return
        victim = self._lab.chance.choice(idle)
        if self.sent % 6 == 5:
            os.kill(victim.pid, signal.SIGSTOP)
            self._stopped.append((now, victim))
        else:
            twice = self.sent % 3 == 2
            process = psutil.Process(victim.pid)
            os.kill(victim.pid, signal.SIGTERM)
            if twice:
                time.sleep(0.2)
                with suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGTERM)
            self._ending.append((now, process, self.exits if twice else self.drains))
        self.sent += 1
        self._left -= 1

    def end(self) -> None:
        """Wake whoever is still stopped."""
        for _, worker in self._stopped:
            os.kill(worker.pid, signal.SIGCONT)
