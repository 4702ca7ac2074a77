"""What a dry run says, and that it submits nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from producer.cli import app as cli
from producer.estimate import CHECKED, estimate
from shared.messages import Photo
from shared.plan import Plan
from shared.recipe import Recipe
from shared.storage import MemoryStorage, open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from made_jobs import Catalogue

WHITE = {"background": {"model": "color"}}


def dry(catalogue: Catalogue, *options: str) -> tuple[dict[str, object], str]:
    command = ["submit", str(catalogue.photos), "--out", str(catalogue.out), "--dry-run", "--json", *options]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def test_before_any_job_everything_would_run_and_nothing_is_known_of_time(catalogue: Catalogue) -> None:
    """A figure out of thin air would be worse than none; the output folder is not even made."""
    for number in range(3):
        catalogue.add(f"{number}.jpg", "photo")
    found, said = dry(catalogue, "--gpu-hour-price", "2")
    assert found["photos"] == 3
    assert found["runs"] == {"segmentation": 3, "inpainting": 3, "captioning": 3}
    assert (found["seconds"], found["device_hours"], found["cost"]) == (None, None, None)
    assert "no job with these models has ended here yet" in said
    assert not catalogue.out.exists()


def test_after_a_job_it_tells_what_is_left_its_time_and_its_cost(catalogue: Catalogue, tmp_path: Path) -> None:
    """By the pace and the model seconds of the jobs that were; another background keeps the masks."""
    for number in range(4):
        catalogue.add(f"{number}.jpg", "photo")
    job = catalogue.submit()
    catalogue.follow(job)
    catalogue.session(job).finish(2.0, None)
    catalogue.add("new.jpg", "photo")
    before = catalogue.outputs()
    found, _ = dry(catalogue, "--gpu-hour-price", "3600")
    assert (found["photos"], found["skipped"]) == (5, 4)
    assert found["runs"] == {"segmentation": 1, "inpainting": 1, "captioning": 1}
    assert found["seconds"] == pytest.approx(0.5)  # one photo at two a second
    assert found["cost"] == pytest.approx(sum(found["past"]["seconds"].values()), abs=1e-6)  # type: ignore[index]
    recipe = tmp_path / "white.json"
    recipe.write_text(json.dumps(WHITE))
    found, _ = dry(catalogue, "--recipe", str(recipe))
    assert found["runs"] == {"segmentation": 1, "inpainting": 5, "captioning": 5}
    assert catalogue.outputs() == before


def test_a_large_job_is_judged_by_a_sample() -> None:
    """Every photo is counted, and the outputs of two thousand looked up: half of them done is half of all."""
    out = MemoryStorage()
    plan = Plan(Recipe())
    for number in range(0, 10_000, 2):
        outputs = plan.outputs(f"{number}.jpg", "e")
        for stage in ("segmentation", "inpainting", "captioning"):
            out.put(outputs.marker(stage), b"{}")
    photos = (Photo(f"{number}.jpg", "e") for number in range(10_000))
    found = estimate(photos, MemoryStorage(), out, Recipe())
    assert (found.photos, found.checked) == (10_000, CHECKED)
    assert found.skipped == pytest.approx(5000, rel=0.1)
    assert f"from a sample of {CHECKED:,}" in found.lines()[0]


def test_photos_that_can_only_fail_are_counted(catalogue: Catalogue, tmp_path: Path) -> None:
    """A manifest's row without a photo is told before anything is paid for."""
    catalogue.add("a.jpg", "photo")
    manifest = tmp_path / "items.csv"
    manifest.write_text("key\na.jpg\nnot-there.jpg\n")
    found, _ = dry(catalogue, "--manifest", str(manifest))
    assert (found["photos"], found["refused"]) == (2, 1)


def test_a_price_without_a_dry_run_is_refused(catalogue: Catalogue) -> None:
    """An option that would do nothing is told."""
    broker = catalogue.settings.broker.get_secret_value()
    command = [
        "submit",
        str(catalogue.photos),
        "--out",
        str(catalogue.out),
        "--broker",
        broker,
        "--gpu-hour-price",
        "2",
    ]
    result = CliRunner().invoke(cli, command, standalone_mode=False)
    assert "goes with --dry-run" in str(result.exception)


def test_a_place_that_is_not_yet_there_has_no_past(tmp_path: Path, catalogue: Catalogue) -> None:
    """Neither is it an error."""
    out = open_storage(str(tmp_path / "new"), catalogue.settings)
    assert estimate([Photo("a.jpg", "e")], MemoryStorage(), out, Recipe()).past.pace is None
