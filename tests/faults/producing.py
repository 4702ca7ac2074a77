"""Producers and keepers killed at random moments, and two of each at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from lab import Lab, Outcome

from producer.launch import env_for
from shared.jobs import load_summary

if TYPE_CHECKING:
    from pathlib import Path


def producers(folder: Path, *, items: int = 4000, kills: int = 50, seconds: float = 300) -> Outcome:
    """Two producers contend for one job and two keepers look after it; each is killed and started again, until the keepers end the job."""
    with Lab(folder, window=200) as lab:
        for number in range(items):
            lab.say(f"{number:05d}", "slow:0.03")
        session = lab.session()
        commands = {
            "producer": ["submit", "--resume", session.job.id, "--out", str(lab.out)],
            "keeper": ["keeper", "--out", str(lab.out), "--every", "1"],
        }
        running: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str) -> None:
            command = [sys.executable, "-m", "producer.cli", *commands[name.partition("-")[0]]]
            with (folder / f"{name}.log").open("ab") as log:
                running[name] = subprocess.Popen(
                    command, env=os.environ | env_for(lab.settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

        names = [f"{kind}-{number}" for kind in commands for number in range(2)]
        killed = 0
        upcoming = 0.0
        until = time.monotonic() + seconds
        try:
            while load_summary(session.destination, session.job.id) is None:
                if time.monotonic() > until:
                    raise TimeoutError(f"not ended in {seconds} s: {session.progress.counts()}")
                lab.supervise()
                counts = session.progress.counts()
                for name in names:
                    # A producer that was refused, or is done, ends by itself.
                    if (name not in running or running[name].poll() is not None) and not (
                        counts.listed and "producer" in name
                    ):
                        start(name)
                # Spread over the whole job, with enough of it left for the last.
                if killed < kills and counts.done >= items * killed / (kills + 5) and time.monotonic() > upcoming:
                    victim = running[lab.chance.choice(names)]
                    if victim.poll() is None:
                        victim.kill()
                        killed += 1
                    upcoming = time.monotonic() + lab.chance.uniform(0.1, 1)
                time.sleep(0.1)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        outcome = lab.audit(session)
        outcome.also = {"kills": killed}
        outcome.expect("every photo was listed", outcome.submitted == items)
        outcome.expect("nothing failed", outcome.failed == 0)
        outcome.expect("every kill was made", killed == kills)
        return outcome
