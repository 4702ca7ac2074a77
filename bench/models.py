"""Model stages from the original script's way to ours, on one device, with random weights.

    python -m bench.models [--size tiny|full] [--stages sam,inpaint,caption,translate] [--runs 5] [--out FILE]

Full size is for a GPU and fits in nine minutes there; tiny runs anywhere and shows only that everything runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.ladder import inpaint, language, sam
from bench.ladder.timing import HEADER, Bench, Rung, device_name

if TYPE_CHECKING:
    from collections.abc import Callable

LADDERS: dict[str, Callable[..., list[Rung]]] = {
    "sam": sam.ladder,
    "inpaint": inpaint.ladder,
    "caption": language.captions,
    "translate": language.translations,
}
ITEMS = {"sam": "images", "inpaint": "images", "caption": "captions", "translate": "sentences"}
BATCHES = {
    "full": {"sam": 8, "inpaint": 16, "caption": 128, "translate": 256},
    "tiny": {"sam": 2, "inpaint": 4, "caption": 4, "translate": 8},
}


def main() -> None:
    """Measure every ladder; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = "full" if torch.cuda.is_available() else "tiny"
    parser.add_argument("--size", choices=("tiny", "full"), default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stages", default=",".join(LADDERS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench(options.device, options.runs)
    name = device_name(bench.device)
    lines = [
        f"# {name}",
        "",
        f"torch {torch.__version__}, {options.size} size, {options.runs} runs; best matrix product {bench.peak / 1e12:.1f} TFLOP/s.",
    ]
    print("\n".join(lines), flush=True)
    figures: dict[str, Any] = {"device": name, "size": options.size}
    for stage in options.stages.split(","):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="vitrina-bench-") as folder:
            rungs = LADDERS[stage](bench, options.size, Path(folder), BATCHES[options.size][stage])
        base, best = rungs[0].rate, max((rung for rung in rungs if rung.same), key=lambda rung: rung.rate)
        table = ["", f"## {stage}", "", HEADER, *(rung.row(base, bench.peak) for rung in rungs)]
        table += ["", f"Measured in {time.perf_counter() - start:.0f} s, saving and loading the weights included."]
        print("\n".join(table), flush=True)
        lines += table
        used = best.utilisation(bench.peak)
        figures |= {
            f"{stage}_{ITEMS[stage]}_per_second": round(best.rate, 3),
            f"{stage}_speedup": round(best.rate / base, 2),
            f"{stage}_mfu": None if used is None else round(used, 4),
        }
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*lines, "", f"`{json.dumps(figures)}`", ""]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
