"""A day of arrivals under the autoscaling rules of `deploy/k8s`: how long photos wait, what the GPUs cost, what scaling down interrupts.

    python -m bench.autoscale --help
    python -m bench.autoscale --size 1,10,50 --gpu-hour-price 2.50

The second line replays no day: it tells how many workers so many photos a second need, and what they cost.

Nothing is measured here but the rules: the cluster is a model of one. What waits per worker, cooldown, polling, stabilisation, policies and
the largest numbers of workers are read from the ScaledObjects; grace period and window from the manifests beside them.

Assumed, and set by options:
- images per second of one worker: bench/README.md's aims for one H100 (no full-size figure has been measured yet), in batches of 8, each photo
  of which takes its share of the time;
- 90 s from a worker's being wanted to its container's start (a node that is there or comes soon, its image), and 30, 60 and 60 s to load a model;
- 1 s to fetch and upload around a batch;
- interactive: sessions of 5 to 40 photos in the priority queues, 7:00 to 21:00, twelve an hour at the height of the day;
- bulk: 100,000 photos at 1:00 and 20,000 at 12:00, fed through the window;
- trickle: 8,000 photos at 1:00, and until 5:00 one to twenty more, thirty times as often as sessions: every ten seconds;
- the horizontal pod autoscaler looks every 15 s with a tolerance of a tenth; of several workers it takes the unready ones first, then the youngest;
- of several free workers the one takes a photo that has waited longest.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.fleet import Assumed, Fleet
from bench.scaling import read_grace, read_rules, read_window
from bench.sizing import read_speeds, table, workers
from shared.keys import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.scaling import Rule
    from shared.keys import StageName

HOUR = 3600
DAY = 24 * HOUR
SPEED: dict[StageName, float] = {"segmentation": 40, "inpainting": 7.5, "captioning": 300}
LOAD: dict[StageName, float] = {"segmentation": 30, "inpainting": 60, "captioning": 60}
BULK = ((1 * HOUR, 100_000), (12 * HOUR, 20_000))
BURST = ((1 * HOUR, 8_000),)
ARRIVALS = ("interactive", "bulk", "both", "trickle")

Rules = dict["StageName", "Rule"]


def sessions(rng: random.Random, an_hour: float) -> list[tuple[float, int]]:
    """Draw a day's sessions: when, and how many photos. The rate is a half wave from 7:00 to 21:00."""
    found, now = [], 0.0
    while an_hour and (now := now + rng.expovariate(an_hour / HOUR)) < DAY:
        height = math.sin(math.pi * (now / HOUR - 7) / 14)
        if rng.random() < height:
            found.append((now, rng.randint(5, 40)))
    return found


def trickle(rng: random.Random, an_hour: float) -> list[tuple[float, int]]:
    """Draw what drips in after a burst: when, and how many photos."""
    found, now = [], 1.0 * HOUR
    while an_hour and (now := now + rng.expovariate(30 * an_hour / HOUR)) < 5 * HOUR:
        found.append((now, rng.randint(1, 20)))
    return found


def always_on(rules: Rules) -> Rules:
    """Keep every worker there may be."""
    return {stage: replace(rule, minimum=rule.maximum) for stage, rule in rules.items()}


def one_kept(rules: Rules) -> Rules:
    """Keep one worker of each stage."""
    return {stage: replace(rule, minimum=1) for stage, rule in rules.items()}


def lists_only(rules: Rules) -> Rules:
    """Look at a stage's own two lists alone, as a plain trigger per list would."""
    return {stage: replace(rule, formula=f"{stage} + {stage}_priority") for stage, rule in rules.items()}


def busy_uncounted(rules: Rules) -> Rules:
    """Look at what waits, and not at who is busy."""
    return {stage: replace(rule, formula=rule.formula.replace("busy *", "0 *")) for stage, rule in rules.items()}


POLICIES: dict[str, Callable[[Rules], Rules]] = {
    "as set": dict,
    "busy not counted": busy_uncounted,
    "own lists only": lists_only,
    "one kept": one_kept,
    "always on": always_on,
}


def simulate(
    rules: Rules, assumed: Assumed, arrivals: str, *, window: int, an_hour: float, bulk: Sequence[tuple[float, int]]
) -> dict[str, Any]:
    """Run one day and return its figures; seconds, unless the name says otherwise."""
    fleet = Fleet(rules, assumed, DAY, warm=True)
    rng = random.Random(7)  # noqa: S311 - the same day every time
    draw = trickle if arrivals == "trickle" else sessions
    for when, photos in draw(rng, 0 if arrivals == "bulk" else an_hour):
        fleet.at(when, partial(fleet.queue, "interactive", photos))
    for when, photos in {"interactive": (), "trickle": BURST}.get(arrivals, bulk):
        fleet.at(when, partial(fleet.feed, photos, window))
    fleet.run()
    stages = fleet.stages.values()
    ended = sum(map(len, fleet.ended.values()))
    return {
        "photos": fleet.queued,
        "lost": fleet.queued - ended,
        "gpu_hours": round(sum(stage.seconds for stage in stages) / HOUR, 1),
        "most_waiting": {stage.name: stage.peak for stage in stages},
        "wait": {
            kind: {"p50": quantile(waits, 0.5), "p95": quantile(waits, 0.95)} for kind, waits in fleet.ended.items()
        },
        "busy_removed": sum(stage.busy_removed for stage in stages),
        "longest_drain": round(max(stage.longest_drain for stage in stages), 1),
        "killed": sum(stage.killed for stage in stages),
    }


def quantile(values: list[float], share: float) -> float:
    """Return the value that a share of all do not exceed."""
    return round(sorted(values)[math.ceil(share * len(values)) - 1], 1)


def by_stage(text: str) -> dict[StageName, float]:
    """Read `segmentation=40,inpainting=7.5`. Raises `ArgumentTypeError`."""
    found: dict[StageName, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        stage = next((stage for stage in STAGES if stage == name), None)
        try:
            value = float(number)
        except ValueError:
            value = 0
        if stage is None or not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{part!r}: write STAGE=NUMBER above 0, stages are {', '.join(STAGES)}")
        found[stage] = value
    return found


def measured(file: str) -> dict[StageName, float]:
    """Read speeds that were measured. Raises `ArgumentTypeError`."""
    try:
        return read_speeds(file)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def amounts(text: str) -> list[float]:
    """Read numbers above 0. Raises `ArgumentTypeError`."""
    found = [amount(part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers above 0")
    return found


def amount(text: str) -> float:
    """Read a number that is not negative. Raises `ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, 0 or more")
    return value


def row(arrivals: str, policy: str, day: Mapping[str, Any], always: float, price: float) -> str:
    """Write a line of the table."""
    waits = []
    for kind in ("interactive", "bulk"):
        wait = day["wait"].get(kind)
        waits.append(f"{wait['p50']:.0f} / {wait['p95']:.0f}" if wait else "")
    cost, share = day["gpu_hours"] * price, day["gpu_hours"] / always
    cells = [arrivals, policy, f"{day['photos']:,}", f"{day['gpu_hours']}", f"{share:.0%}", f"{cost:.0f}", *waits]
    cells += [
        f"{max(day['most_waiting'].values()):,}",
        str(day["busy_removed"]),
        f"{day['longest_drain']}",
        str(day["lost"]),
    ]
    return "| " + " | ".join(cells) + " |"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.autoscale", description=str(__doc__).partition("\n")[0])
    say = parser.add_argument
    say(
        "--speed",
        type=by_stage,
        default={},
        help="images/s of one worker: segmentation=40,inpainting=7.5,captioning=300",
    )
    say("--speeds", type=measured, default={}, metavar="FILE", help="speeds as bench.models has measured them")
    say(
        "--load", type=by_stage, default={}, help="seconds to load a model: segmentation=30,inpainting=60,captioning=60"
    )
    say("--start", type=amount, default=90, help="seconds until a wanted worker's container starts (90)")
    say("--transfer", type=amount, default=1, help="seconds of fetching and uploading around a batch (1)")
    say("--sessions", type=amount, default=12, help="interactive sessions an hour at the height of the day (12)")
    say("--bulk", type=amount, default=1, help="bulk jobs' size, as a multiple of the assumed one (1)")
    say("--gpu-hour-price", type=amount, default=3, help="(3)")
    say("--size", type=amounts, metavar="RATES", help="replay nothing: tell what these photos/s need, such as 1,10,50")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table and, as the last line, one JSON object."""
    asked = parse(argv)
    speed = SPEED | asked.speeds | asked.speed
    if asked.size:
        print("\n".join(table(asked.size, speed, asked.gpu_hour_price)))
        print(json.dumps({"speed": speed, "workers": {f"{rate:g}": workers(rate, speed) for rate in asked.size}}))
        return
    rules, window = read_rules(), read_window()
    assumed = Assumed(
        speed=speed,
        load=LOAD | asked.load,
        start=asked.start,
        transfer=asked.transfer,
        grace=read_grace(),
    )
    bulk = [(when, int(photos * asked.bulk)) for when, photos in BULK]
    print("| arrivals | workers | photos | GPU hours | of always on | cost | interactive p50 / p95 s | bulk p50 / p95 s "
          "| most waiting | busy removed | longest drain s | lost |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    days: dict[str, dict[str, Any]] = {}
    for arrivals in ARRIVALS:
        days[arrivals] = {
            name: simulate(policy(rules), assumed, arrivals, window=window, an_hour=asked.sessions, bulk=bulk)
            for name, policy in POLICIES.items()
        }
        always = days[arrivals]["always on"]["gpu_hours"]
        for name, day in days[arrivals].items():
            print(row(arrivals, name, day, always, asked.gpu_hour_price))
    print(json.dumps({"grace": assumed.grace, "window": window, "days": days}))


if __name__ == "__main__":
    main()
