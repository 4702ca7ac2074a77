"""Compares the pipeline with a plain serial loop: same photos, same models, same outputs, one machine, one run.

    python -m bench.pipeline [FOLDER] [--items 48]

Both sides start with models loaded and warm. The loop hands every core to each model in turn; the pipeline shares the cores among three
workers. Rounds alternate, so that a noisy machine is noisy for both; the best round of each counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.embedded import Stack
from producer.failures import Failures
from producer.follow import follow
from producer.listing import list_photos
from producer.samples import write_samples
from producer.session import create_job
from producer.submit import Submitter
from shared.broker import make_app
from shared.connection import connect
from shared.keys import STAGES
from shared.plan import Outputs, Plan, chosen
from shared.progress import Progress
from shared.recipe import Recipe
from shared.settings import Settings
from shared.storage import Storage, open_storage
from workers.registry import make_model
from workers.stage import Model, Work

if TYPE_CHECKING:
    from shared.keys import StageName

RECIPE = Recipe()


def serial(models: dict[StageName, Model[Any, Any]], source: Storage, destination: Storage) -> float:
    """Bring every photo through the three models, one after another; return seconds."""
    plan = Plan(RECIPE)
    start = time.perf_counter()
    for stat in source.list():
        outputs: Outputs = plan.outputs(stat.key, stat.etag)
        photo = source.get(stat.key).data
        files: dict[str, bytes] = {}
        for stage, model in models.items():
            work = Work(stat.key, RECIPE, photo, dict(files), seed=int(outputs.fingerprints[stage], 16) & 0x7FFFFFFF)
            prepared = model.prepare(work)
            result = model.finish(work, prepared, model.infer([prepared])[0])
            for kind, key in outputs.keys[stage].items():
                files[kind] = result.artifacts[kind].data
                destination.put(key, files[kind])
    return time.perf_counter() - start


def pipeline(settings: Settings, source: Storage, destination: Storage) -> float:
    """Run one job through the queues; return seconds from submission to the last output."""
    app = make_app(settings)
    with connect(settings) as client:
        start = time.perf_counter()
        job = create_job(source, destination, RECIPE)
        progress = Progress(client, job.id)
        progress.begin(job.destination)
        Submitter(app, progress, job, destination, window=settings.window).feed(list_photos(source, destination))
        counts = follow(progress, lambda _: None)
        seconds = time.perf_counter() - start
    app.close()
    assert counts.failed == 0, list(Failures(destination, progress))
    return seconds


def make_photos(folder: Path | None, into: Path, items: int) -> None:
    """Fill `into` with `items` photos, repeating the folder's as often as needed under new names."""
    if folder is None:
        folder = into.parent / "samples"
        write_samples(folder)
    into.mkdir()
    photos = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for number, photo in enumerate(itertools.islice(itertools.cycle(photos), items)):
        shutil.copy(photo, into / f"{number:04d}-{photo.name}")


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="photos; sample photos without one")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    settings = Settings()
    times: dict[str, list[float]] = {"serial": [], "pipeline": []}
    with tempfile.TemporaryDirectory(prefix="vitrina-bench-") as name:
        folder = Path(name)
        make_photos(options.folder, folder / "photos", options.items)
        source = open_storage(str(folder / "photos"), settings)
        models = {stage: make_model(stage, chosen(RECIPE, stage), settings) for stage in STAGES}
        for model in models.values():
            model.load("cpu", os.cpu_count() or 1)
        with Stack(settings, s3=False, workers=STAGES, flower=False, data_dir=folder / "stack") as stack:
            for number in range(options.rounds):
                for kind, measured in times.items():
                    destination = open_storage(str(folder / f"{kind}-{number}"), settings)
                    seconds = (
                        serial(models, source, destination)
                        if kind == "serial"
                        else pipeline(stack.settings, source, destination)
                    )
                    measured.append(seconds)
                    print(
                        f"round {number + 1}  {kind:<9} {seconds:7.2f} s  {options.items / seconds:6.2f} images/s",
                        flush=True,
                    )
    best = {kind: options.items / min(seconds) for kind, seconds in times.items()}
    figures = {
        "items": options.items,
        "cores": os.cpu_count(),
        "pipeline_images_per_second": round(best["pipeline"], 3),
        "serial_images_per_second": round(best["serial"], 3),
        "ratio": round(best["pipeline"] / best["serial"], 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
