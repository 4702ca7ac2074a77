"""The whole job with production models of random weights: command line, broker, three workers, storage."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_sam import taught_sam
from PIL import Image, ImageDraw

from shared.errors import ModelMissingError
from shared.models import find
from shared.settings import Settings
from workers.random_models.diffusion import save_inpainting
from workers.random_models.language import save_blip2, save_marian, save_vlm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, tiny models in the hub's layout, a recipe that names them, a manifest."""
    try:
        find("u2netp", Settings().models_dir)
    except ModelMissingError as error:
        pytest.skip(str(error))
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    for number in range(4):
        photo = Image.new("RGB", (200 + 40 * (number % 2), 160), "#e9e4da")
        ImageDraw.Draw(photo).rounded_rectangle((60, 30, 140, 130), 12, fill=["#1d4ed8", "#b91c1c"][number % 2])
        photo.save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    inpainting = save_inpainting(folder / "models" / "inpainting")
    blip2, marian = save_blip2(folder / "models" / "blip2"), save_marian(folder / "models" / "marian")
    torch.save(taught_sam().state_dict(), folder / "models" / "taught_vit.pth")
    recipe: dict[str, Any] = {
        # Filters that a tiny model's masks pass.
        "segmentation": {
            "model": "sam",
            "weights": str(folder / "models" / "taught_vit.pth"),
            "points_per_side": 8,
            "min_predicted_iou": 0.1,
            "min_stability": 0.5,
        },
        "background": {
            "model": "diffusion",
            "weights": str(inpainting),
            "resolution": 64,
            "steps": 2,
            "variants": 2,
            "prompt": "a {color} background for {title}",
        },
        "caption": {
            "model": "blip2",
            "weights": str(blip2),
            "translators": {"ru": str(marian)},
            "max_tokens": 8,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    vlm = save_vlm(folder / "models" / "vlm")
    recipe["caption"] = {"model": "vlm", "weights": str(vlm), "max_tokens": 16}
    (folder / "vlm.yaml").write_text(yaml.safe_dump(recipe))
    rows = [f"{number}.png,Mug {number}" for number in range(4)]
    (folder / "items.csv").write_text("\n".join(["key,title", *rows, "broken.jpg,"]) + "\n")
    return folder


def run(
    shop: Path, *options: str, recipe: str = "recipe.yaml"
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    command = [sys.executable, "-m", "producer.cli", "run", str(shop / "photos"), "--out", str(shop / "out"), "--json"]
    command += ["--recipe", str(shop / recipe), "--manifest", str(shop / "items.csv"), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,  # a machine that does much else starts four processes slowly
        check=False,
        cwd=ROOT,
        env=os.environ | {"VITRINA_DEVICE": "cpu"},
    )
    return done, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def described(folder: Path, model: str) -> dict[str, Any]:
    """Return the one record that a captioning model wrote of a photo; another may have written one as well."""
    records = [json.loads(path.read_text()) for path in folder.glob("caption-*.json")]
    (record,) = [record for record in records if record["stages"]["captioning"]["model"] == model]
    return dict(record)


@pytest.mark.timeout(900)
def test_every_photo_goes_through_the_three_production_stages(shop: Path) -> None:
    """Two variants each, captions in two languages, provenance with seeds; the broken photo fails alone; again skips all."""
    done, summary = run(shop, "--report", str(shop / "report.html"))
    assert (summary["items"], summary["done"], summary["failed"]) == (5, 4, 1), done.stderr
    for number in range(4):
        folder = shop / "out" / f"{number}.png"
        kinds = sorted(
            path.name.split("-")[0] for path in folder.iterdir() if not path.name.startswith((".", "caption"))
        )
        assert kinds == ["cutout", "image", "image", "mask"]
        record = described(folder, "blip2")
        assert set(record["captions"]) == {"en", "ru"}
        assert record["fields"] == {"title": f"Mug {number}"}
        found = record["stages"]["segmentation"]["measures"]
        assert (record["stages"]["segmentation"]["model"], found["choice"]) == ("sam", "product with prior")
        assert found["candidates"] > 1
        measures = record["stages"]["inpainting"]["measures"]
        assert measures["preserved_max_difference"] == 0
        assert measures["seed"] != measures["variants"][0]["seed"]
        pictures = [
            np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in sorted(folder.glob("image-*.jpg"))
        ]
        assert pictures[0].shape == pictures[1].shape
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 1
    page = (shop / "report.html").read_text()
    assert "broken.jpg" in page
    assert page.count('alt="Variant 2: ') == 4
    done, again = run(shop)
    assert (again["done"], again["skipped"], again["failed"]) == (4, 4, 1), done.stderr


@pytest.mark.timeout(900)
def test_a_vision_language_model_takes_the_captions_place(shop: Path) -> None:
    """Masks and pictures as before; of random weights no answer can be used: every item has a record all the same, and needs review."""
    done, summary = run(shop, recipe="vlm.yaml")
    counts = [summary[name] for name in ("items", "done", "needs_review", "failed")]
    assert counts == [5, 4, 4, 1], done.stderr
    for number in range(4):
        record = described(shop / "out" / f"{number}.png", "vlm")
        assert record["stages"]["segmentation"]["model"] == "sam"
        assert record["captions"] == {}
        assert "caption_schema" in record["reasons"]
        assert record["stages"]["captioning"]["measures"]["attempts"] == 2


def test_a_recipe_whose_weights_are_missing_is_refused_before_the_job(shop: Path, tmp_path: Path) -> None:
    """One line that names the command to run; nothing is written."""
    (tmp_path / "recipe.yaml").write_text("caption: {model: blip2}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "producer.cli",
            "run",
            str(shop / "photos"),
            "--out",
            str(tmp_path / "out"),
            "--recipe",
            str(tmp_path / "recipe.yaml"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "vitrina models fetch blip2-opt-2.7b" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "jobs").exists()
