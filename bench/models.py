"""Model stages from the original script's way to ours, on one device, with random weights.

    python -m bench.models [--size tiny|full] [--stages sam,inpaint,…] [--runs 5] [--minutes 9] [--out FILE]

Full size is for a GPU; tiny runs anywhere and shows only that everything runs. Whatever fails or takes too long, the last line is the
JSON object of what was measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.ladder import inpaint, language, sam
from bench.ladder.climb import OutOfTime, climb, failure, time_limit
from bench.ladder.timing import Bench, device_name
from bench.ladder.ways import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.ladder.ways import Ladder
    from workers.random_models.diffusion import Size

LADDERS: dict[str, Callable[[Bench, Size, Path], Ladder]] = {
    "sam": sam.ladder,
    "caption": language.captions,
    "translate": language.translations,
    "inpaint": inpaint.ladder,
}
"""The hungriest last: it has what the others leave."""
ITEMS = {"sam": "images", "caption": "captions", "translate": "sentences", "inpaint": "images"}
SHARES = {"sam": 3, "caption": 2, "translate": 1, "inpaint": 4}
"""Of the time, which reading weights and compiling take most of."""
MINUTES = 8.5
"""For everything: a GPU is often lent for ten, and starting takes its own."""


def main() -> None:
    """Measure every ladder; the last line is one JSON object."""
    options = _options()
    end = time.monotonic() + 60 * options.minutes
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # whoever lends the GPU may want it back: with the figures so far
    torch.manual_seed(0)
    if options.size == "tiny":
        torch.compiler.set_stance("force_eager")  # compiling takes minutes, and shows nothing at this size
    bench = Bench(options.device, options.runs)
    name = device_name(bench.device)
    figures: dict[str, Any] = {"device": name, "size": options.size, "peak_tflops": round(bench.peak / 1e12, 2)}
    figures |= {key: None for stage in options.stages for key in keys(stage)}
    lines = [
        f"# {name}",
        "",
        f"torch {torch.__version__}, {options.size} size, {options.runs} runs each; best matrix product {bench.peak / 1e12:.1f} TFLOP/s.",
    ]
    print("\n".join(lines), flush=True)
    try:
        for number, stage in enumerate(options.stages):
            part = SHARES[stage] / sum(SHARES[later] for later in options.stages[number:])
            now = time.monotonic()
            section, found = measure(stage, bench, options.size, now + part * max(0.0, end - now))
            figures |= found
            lines += section
            print("\n".join(section), flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text("\n".join([*lines, "", f"`{json.dumps(figures)}`", ""]), encoding="utf-8")
            torch.compiler.reset()
            bench.free()
    finally:
        print(json.dumps(figures), flush=True)


def measure(stage: str, bench: Bench, size: Size, deadline: float) -> tuple[list[str], dict[str, Any]]:
    """Measure one ladder until `deadline` (`time.monotonic`); return its section in Markdown and its figures, None where there are none."""
    start = time.monotonic()
    results = Results([], bench.peak)
    notes = []
    try:
        with time_limit(deadline), tempfile.TemporaryDirectory(prefix="vitrina-bench-") as folder:
            ladder = LADDERS[stage](bench, size, Path(folder))
            for rung in climb(ladder.ways, bench):
                results.rungs.append(rung)
                told = f"{rung.rate:.2f} {ITEMS[stage]}/s" if rung.rate else rung.lost
                print(f"{stage}: {rung.way.name}: {told}", file=sys.stderr, flush=True)
            if ladder.note and results.best:
                notes.append(ladder.note(results.best.rate or 0))
    except OutOfTime:
        notes.append("Ended early: no time left.")
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one stage, the others still count
        notes.append(failure(error))
    notes.append(f"Measured in {time.monotonic() - start:.0f} s, making, saving and loading the weights included.")
    lines = ["", f"## {stage}", "", *results.table(), ""]
    best = results.best
    if best is None:
        return [*lines, *notes], dict.fromkeys(keys(stage))
    speedup, used = results.speedup(best), results.utilisation(best)
    found = (
        round(best.rate or 0, 3),
        None if speedup is None else round(speedup, 2),
        None if used is None else round(used, 4),
        f"{best.way.name}: {best.way.settings}",
    )
    return [*lines, results.summary(ITEMS[stage]), *notes], dict(zip(keys(stage), found, strict=True))


def keys(stage: str) -> tuple[str, ...]:
    """Return the names of a stage's figures: rate, speed-up, utilisation, and the way that has them."""
    return f"{stage}_{ITEMS[stage]}_per_second", f"{stage}_speedup", f"{stage}_mfu", f"{stage}_way"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", choices=("tiny", "full"), default="full" if cuda else "tiny")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--stages", type=_stages, default=list(LADDERS), help=f"some of {','.join(LADDERS)}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything, shared by the stages")
    parser.add_argument("--out", type=Path, help="also write the tables to this file, after each stage")
    return parser.parse_args()


def _stages(text: str) -> list[str]:
    stages = text.split(",")
    if unknown := [stage for stage in stages if stage not in LADDERS]:
        raise argparse.ArgumentTypeError(f"no such stage {', '.join(unknown)}: take some of {', '.join(LADDERS)}")
    return stages


if __name__ == "__main__":
    main()
