"""`make bench-models`: a GPU is lent for minutes, so that every run of it must end with figures."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bench import models
from bench.ladder.climb import OutOfTime, climb, time_limit
from bench.ladder.sam import discs
from bench.ladder.timing import Bench
from bench.ladder.ways import Ladder, Results, Way

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
FIGURES = ("sam_images", "inpaint_images", "caption_captions", "translate_sentences")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("cpu", runs=2)


@pytest.mark.timeout(900)  # a minute on two free cores
def test_a_tiny_run_measures_every_way_and_ends_with_the_figures_that_are_promised(tmp_path: Path) -> None:
    """Every way works, and the last line is one JSON object of rates, speed-ups and utilisations."""
    out = tmp_path / "results" / "cpu.md"
    options = ("--size", "tiny", "--device", "cpu", "--runs", "1", "--minutes", "60", "--out", str(out))
    done = subprocess.run(
        [sys.executable, "-m", "bench.models", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # two threads on a busy core wait for each other
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["device"].startswith("CPU")
    for name in FIGURES:
        stage = name.partition("_")[0]
        assert all(figures[key] > 0 for key in (f"{name}_per_second", f"{stage}_speedup", f"{stage}_mfu")), figures
        assert figures[f"{stage}_way"]
    tables = out.read_text(encoding="utf-8")
    assert "failed" not in tables
    assert "no time left" not in tables
    assert json.dumps(figures) in tables


def test_a_way_that_fails_costs_only_itself(bench: Bench) -> None:
    """Its row says why in a line, and the ways after it are measured."""
    rungs = list(climb([_way("first"), _way("broken", _raise), _way("last")], bench))
    assert [rung.lost for rung in rungs] == ["", "failed: RuntimeError: CUDA out of memory.", ""]
    row = Results(rungs, bench.peak).table()[3]
    assert row.startswith("| broken | the defaults | failed: RuntimeError: CUDA out of memory. |")
    assert rungs[2].rate


def test_a_way_that_takes_too_long_is_stopped_and_the_others_are_skipped(bench: Bench) -> None:
    """What was measured before stands."""
    ways = [_way("quick"), _way("endless", lambda: signal.raise_signal(signal.SIGALRM)), _way("later")]
    with time_limit(time.monotonic() + 600):
        rungs = list(climb(ways, bench))
    assert [rung.lost for rung in rungs] == ["", "stopped: no time left", "skipped: no time left"]


def test_what_does_not_hear_the_first_call_is_stopped_by_the_next() -> None:
    """A call is lost while Python tidies up; a lent GPU must not be."""

    def deaf() -> None:
        with contextlib.suppress(OutOfTime):
            _forever()
        _forever()

    with pytest.raises(OutOfTime), time_limit(time.monotonic() + 0.05):
        deaf()


def test_a_stage_that_fails_leaves_its_figures_empty(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other stages still count, and every key is there."""
    monkeypatch.setitem(models.LADDERS, "sam", lambda *_: _raise())
    lines, figures = models.measure("sam", bench, "tiny", time.monotonic() + 600)
    assert figures == dict.fromkeys(models.keys("sam"))
    assert "failed: RuntimeError: CUDA out of memory." in lines


def test_the_figure_is_that_of_the_fastest_way_the_product_can_be_set_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a trial nor what makes other pictures is ours, however fast."""
    ways = [
        Way(name="original", items=1, do=lambda: time.sleep(0.2), flops=1e9),
        Way(name="ours", items=4, do=lambda: time.sleep(0.2), settings="compile: true", flops=1e9),
        Way(name="trial", items=1000, do=lambda: None, flops=1e9),
    ]
    monkeypatch.setitem(models.LADDERS, "sam", lambda *_: Ladder(ways=ways))
    _, figures = models.measure("sam", bench, "tiny", time.monotonic() + 600)
    assert figures["sam_way"] == "ours: compile: true"
    assert figures["sam_images_per_second"] < 21
    assert figures["sam_mfu"] == pytest.approx(1e9 * figures["sam_images_per_second"] / bench.peak, rel=0.01)


def test_the_first_run_is_the_one_that_prepares(bench: Bench) -> None:
    """Compiling and allocating show in it, and in no other number."""
    waits = iter([0.5])
    layer = torch.nn.Linear(4, 4)
    with torch.inference_mode():
        rung = bench.measure(
            Way(
                name="slow to start",
                items=2,
                do=lambda: (time.sleep(next(waits, 0)), layer(torch.ones(1, 4))),
                parts={"layer": layer},
            )
        )
    assert rung.first_seconds >= 0.5
    assert rung.counted_flops == 16  # 2 x 4 x 4 for two items
    assert set(rung.parts) == {"layer", "rest"}


def test_masks_are_discs_whatever_the_weights() -> None:
    """Outlines as smooth as a photo's: noise would cost the original way seconds."""
    masks = discs(4, 64).numpy() > 0
    assert masks.mean((1, 2)) == pytest.approx(math.pi / 64, rel=0.1)
    assert len({mask.tobytes() for mask in masks}) == 4
    assert all(np.abs(np.diff(mask.astype(int), axis=0)).sum(0).max() == 2 for mask in masks)


def _way(name: str, do: Callable[[], Any] = lambda: None) -> Way:
    return Way(name=name, items=1, do=do, settings="the defaults")


def _raise() -> Any:
    raise RuntimeError("CUDA out of memory.\nTried to allocate more")


def _forever() -> None:
    while True:
        time.sleep(0.01)
