"""The demo from end to end: photos into a bucket, a job, the catalogue and its report back here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from made_commands import draw_mug, last_line, vitrina

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demo_makes_a_catalogue_and_brings_it_here(tmp_path: Path, models: None) -> None:
    """Every output and the job's records are copies in the folder, and the report links them, not the bucket that has gone."""
    del models
    photos, to = tmp_path / "photos", tmp_path / "to"
    draw_mug(photos / "mug.jpg")
    draw_mug(photos / "shelf" / "cup.png", (240, 240))
    (tmp_path / "tmp").mkdir()
    done = vitrina("demo", str(photos), "--to", str(to), "--json", env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 0, done.stderr
    summary = last_line(done)
    assert done.stdout.count("\n") == 1
    assert {name: summary[name] for name in ("items", "done", "failed", "skipped", "report")} == {
        "items": 2,
        "done": 2,
        "failed": 0,
        "skipped": 0,
        "report": str(to / "report.html"),
    }
    for name in ("mug.jpg", "shelf/cup.png"):
        made = [path for path in (to / "catalogue" / name).iterdir() if not path.name.startswith(".")]
        assert {path.name.split("-")[0] for path in made} == {"mask", "cutout", "image", "caption"}
        assert all(path.stat().st_size for path in made)
    assert (to / "catalogue" / "jobs" / summary["job"] / "summary.json").is_file()
    page = (to / "report.html").read_text()
    assert str(photos) in page
    assert "s3://" not in page
    links = set(re.findall(r'href="(catalogue/[^"]+)"', page))
    assert len(links) >= 8
    assert all((to / link).is_file() for link in links)
    assert list((tmp_path / "tmp").glob("vitrina-*")) == []


def test_a_demo_without_its_models_is_told_before_anything_starts(tmp_path: Path) -> None:
    """In one line, with the command that brings them."""
    draw_mug(tmp_path / "photos" / "mug.jpg")
    demo = ["demo", str(tmp_path / "photos"), "--to", str(tmp_path / "to")]
    done = vitrina(*demo, env={"VITRINA_MODELS_DIR": str(tmp_path / "none"), "TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "run `vitrina models fetch" in done.stderr
    assert list(tmp_path.glob("vitrina-*")) == []
