"""How many workers a rate needs, at speeds that are assumed or measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bench.autoscale import SPEED, main
from bench.sizing import read_speeds, table, workers
from shared.keys import STAGES

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = {
    "device": "H100",
    "size": "full",
    "sam_images_per_second": 20.0,
    "sam_mfu": None,
    "inpaint_images_per_second": 5.0,
    "caption_captions_per_second": 300.0,
    "translate_sentences_per_second": 600.0,
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "results.md"
    file.write_text(f"# H100\n\n| a table |\n\n`{json.dumps(FIGURES)}`\n")
    return file


def test_a_stage_has_as_many_workers_as_its_rate_needs() -> None:
    """Rounded up: what is left over has a worker as well."""
    assert workers(40, SPEED) == {"segmentation": 1, "inpainting": 6, "captioning": 1}
    assert workers(41, SPEED)["segmentation"] == 2


def test_a_thousand_photos_cost_what_all_gpus_cost_meanwhile() -> None:
    """Idle ones too; busy ones alone are the least it can cost."""
    lines = list(table([1, 50], SPEED, 3.6))
    costs = [float(line.split("|")[-2]) for line in lines[2:]]
    assert costs[0] == pytest.approx(3 * 1000 / 3600 * 3.6)
    assert costs[1] == pytest.approx(10 * 20 / 3600 * 3.6)
    assert costs[2] == pytest.approx(sum(1 / SPEED[stage] for stage in STAGES), abs=0.01)
    assert costs[2] < costs[1] < costs[0]


def test_measured_speeds_take_the_place_of_assumed_ones(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A caption and its translation are one photo's; a speed on the command line is the last word, and what was not measured stays as it is."""
    assert read_speeds(results) == {"segmentation": 20, "inpainting": 5, "captioning": pytest.approx(200)}
    main(["--size", "10", "--speeds", str(results), "--speed", "inpainting=2.5"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["speed"] == {"segmentation": 20, "inpainting": 2.5, "captioning": pytest.approx(200)}
    assert last["workers"] == {"10": {"segmentation": 1, "inpainting": 4, "captioning": 1}}
    results.write_text(json.dumps(FIGURES | {"translate_sentences_per_second": None}))
    assert set(read_speeds(results)) == {"segmentation", "inpainting"}


@pytest.mark.parametrize("text", ["", "no figures\n", "[1]", "{}", json.dumps(FIGURES | {"size": "tiny"})])
def test_what_says_nothing_of_real_models_is_refused(
    results: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says why."""
    results.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["--speeds", str(results)])
    assert str(results) in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--size", "0"], ["--size", "1,many"], ["--speeds", "no-such-file"]])
def test_a_wrong_word_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is reckoned."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert words[0] in capsys.readouterr().err
