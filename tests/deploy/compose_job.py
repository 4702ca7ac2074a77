"""`make compose-test`: the stack of docker-compose.yml makes a catalogue while a stage is scaled, workers die and the broker restarts.

compose_job.py [PHOTOS]. Progress goes to standard error; the last line of standard output is one JSON object:

- items, done, failed: as the job counts them; lost: items that are neither
- finished: photos whose picture and caption lie in the bucket and can be read; looked_at: those whose mask, cut-out and picture were compared
- producer_image_mb, worker_image_mb: what the images add to their base
- rebuild_seconds: to build both again after a change of code
- pages: the pages that were opened in a browser, by their pictures' names; or why there were none
- skipped: alone, why nothing was done

The exit status is 0 when everything is as promised, 1 when not, and 77 where there is no Docker.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
from compose_pages import look, no_browser
from compose_stack import (
    GPU,
    START_SECONDS,
    Stack,
    StackError,
    docker,
    image_megabytes,
    missing,
    rebuild_seconds,
    say,
    until,
)
from PIL import Image, ImageFilter

from producer.samples import write_samples
from shared.keys import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

SKIPPED = 77
"""Exit status of a test that could not be run, as automake and its heirs have it."""
PRODUCER_MB = 250
REBUILD_SECONDS = 15
"""What images may add to their base, and what building them again may take."""
ENOUGH = 160
"""Photos, so that the job still runs when everything has been done to it: half a minute on two cores."""
LOOKED_AT = 8
"""Photos, the first in order, whose files are compared with each other."""
OPAQUE = 255
FEATHERED = 9
"""Pixels: the square in which one of the edge is looked for; twice the feather of two, and one for what JPEG smears."""
JPEG_LEVELS = 4
"""What encoding at quality 95 may change on average."""
JOB_SECONDS = 1200
KILL_WORKER = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
"""In a container: its first process is tini, which ends when the worker does."""
PICTURES = {".avif", ".bmp", ".gif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}


def main(arguments: list[str]) -> int:
    """Run it, print what it found, and return the exit status."""
    absent = missing()
    if absent:
        say(f"skipped: {absent}. Install Docker with Compose 2, start it, and run this again")
        sys.stdout.write(json.dumps({"skipped": absent}) + "\n")
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is removed then too
    with tempfile.TemporaryDirectory(prefix="vitrina-compose-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # containers read the photos as their own user
        try:
            photos = gather(folder / "photos", Path(arguments[0]) if arguments else None)
            with Stack(folder) as stack:
                result = run(stack, folder, photos)
        except StackError as error:
            say(f"failed: {error}")
            return 1
    sys.stdout.write(json.dumps(result) + "\n")
    wrong = list(broken_promises(result, photos))
    for promise in wrong:
        say(f"failed: {promise}")
    return 1 if wrong else 0


def broken_promises(result: dict[str, Any], photos: int) -> Iterator[str]:
    """Say what the figures should have been and are not."""
    if not result["items"] == result["done"] == result["finished"] == photos or result["lost"]:
        yield f"not every one of {photos} photos is in the catalogue"
    if result["producer_image_mb"] >= PRODUCER_MB:
        yield f"the producer's image adds {result['producer_image_mb']} MB to its base, not less than {PRODUCER_MB}"
    if result["rebuild_seconds"] >= REBUILD_SECONDS:
        yield f"a change of code takes {result['rebuild_seconds']} s to build, not less than {REBUILD_SECONDS}"


def gather(folder: Path, source: Path | None) -> int:
    """Fill a folder with copies of the given photos, or of the sample photos, until there are enough, and return how many there are."""
    if source is None:
        source = folder.with_name("samples")
        write_samples(source)
    given = sorted(each for each in source.rglob("*") if each.suffix.lower() in PICTURES)
    if not given:
        raise StackError(f"{source} holds no photos")
    copies = -(-ENOUGH // len(given))
    for copy in range(copies):
        for photo in given:
            target = folder / str(copy) / photo.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, target)
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    return copies * len(given)


def run(stack: Stack, folder: Path, photos: int) -> dict[str, Any]:
    """Build, start, break and count."""
    check_gpu(stack)
    stack.choose_images()
    say("building")
    stack.build()
    copy = folder / "changed"
    copy.mkdir()
    seconds = rebuild_seconds(stack, copy, ("keeper", "segmentation"))
    say(f"built again after a change of code in {seconds:.1f} s; starting")
    stack.up()
    stack.up("prometheus", *(["grafana"] if stack.has_grafana else []))
    stack.producer("copy", "/photos", "s3://shop/photos", volume=f"{folder / 'photos'}:/photos:ro")
    job = submit(stack, "s3://shop/photos", "s3://shop/catalogue")
    say(f"job {job} of {photos} photos")
    torment(stack, job, photos)
    until(lambda: ended(stack, job), "end of the job", seconds=JOB_SECONDS)
    counts = stack.status(job)
    finished, looked_at = read_catalogue(stack, photos)
    return {
        "items": counts["items"],
        "done": counts["done"],
        "finished": finished,
        "looked_at": looked_at,
        "failed": counts["failed"],
        "lost": counts["items"] - counts["done"] - counts["failed"],
        "producer_image_mb": round(image_megabytes("vitrina/producer")),
        "worker_image_mb": round(image_megabytes("vitrina/worker-cpu")),
        "rebuild_seconds": round(seconds, 1),
        "pages": open_pages(stack, folder),
    }


def submit(stack: Stack, source: str, out: str) -> str:
    """Submit a job and return its id."""
    submitted = stack.producer("submit", source, "--out", out, "--json")
    return str(json.loads(submitted.strip().splitlines()[-1])["job"])


def open_pages(stack: Stack, folder: Path) -> list[str] | str:
    """Make a few photos undisturbed, following them as the README says, and open every page there is; or say why not."""
    job = submit(stack, "s3://shop/photos/0", "s3://shop/calm")
    told = stack.producer("status", job, "--watch")
    counts = stack.status(job)
    if not told.startswith(f"finished: {counts['items']} of {counts['items']} done"):
        raise StackError(
            f"`status --watch` ends with {told!r}, although {counts['done']} of {counts['items']} are done"
        )
    reports = folder / "reports"
    reports.mkdir()
    reports.chmod(0o777)  # the container writes as its own user
    stack.producer("report", job, "--to", "/reports/report.html", volume=f"{reports}:/reports")
    absent = no_browser()
    if absent:
        say(f"no page was opened: {absent}")
        return absent
    return look(stack, job, counts, reports / "report.html")


def check_gpu(stack: Stack) -> None:
    """Lay docker-compose.gpu.yml over the rest: every worker has all GPUs, its models and one /tmp, and nothing else loosens."""
    plain, laid = stack.config(), stack.config(GPU)
    for name in (*STAGES, "models"):
        service = laid[name]
        recipe = service["command"][-1]
        if (service["image"], service["build"]["target"], recipe) != ("vitrina/worker-gpu", "worker-gpu", "production"):
            raise StackError(f"{name} with GPUs is {service['image']} with {recipe}")
        if [each.partition(":")[0] for each in service["tmpfs"]] != ["/tmp"]:  # noqa: S108 - of a container
            raise StackError(f"{name} with GPUs has {service['tmpfs']}")
        if any(service[kept] != plain[name][kept] for kept in ("read_only", "cap_drop", "security_opt")):
            raise StackError(f"{name} with GPUs is less contained")
        if name == "models":
            continue
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        mounted = {each["source"]: each["target"] for each in service["volumes"]}
        if (device["driver"], device["count"], device["capabilities"]) != ("nvidia", -1, ["gpu"]):  # -1: all
            raise StackError(f"{name} asks for {device}")
        if mounted != {"models": "/models", "gpus": service["environment"]["VITRINA_GPU_CLAIMS"]}:
            raise StackError(f"{name} with GPUs mounts {mounted}")


def torment(stack: Stack, job: str, photos: int) -> None:
    """Scale a stage, kill a container of it, kill another stage's process, restart the broker: all while the job runs."""
    reach(stack, job, photos // 10)
    busy = stack.containers("segmentation")[0]
    say("three containers of segmentation")
    stack.scale("segmentation", 3)
    until(lambda: len(stack.containers("segmentation")) == 3, "three containers of segmentation", seconds=START_SECONDS)
    reach(stack, job, photos // 5)
    say("killing a container of segmentation, and the process in the one of inpainting")
    docker("kill", busy)
    crashed = stack.containers("inpainting")[0]
    docker("exec", crashed, "python3", "-c", KILL_WORKER)
    reach(stack, job, photos // 3)
    say("restarting the broker")
    stack.compose("restart", "broker")
    if ended(stack, job):
        raise StackError(f"the job ended before all that: {photos} photos are too few for this machine")
    restarts = docker("inspect", "--format", "{{.RestartCount}}", crashed).strip()
    if restarts == "0":
        raise StackError("the worker that died was not started again")


def reach(stack: Stack, job: str, done: int) -> None:
    """Wait until so many photos are done."""
    until(lambda: stack.status(job)["done"] >= done, f"{done} photos done", seconds=JOB_SECONDS)


def ended(stack: Stack, job: str) -> bool:
    """Whether every item is done or failed."""
    return bool(stack.status(job)["finished"])


def read_catalogue(stack: Stack, photos: int) -> tuple[int, int]:
    """Count the photos whose picture can be decoded and whose caption can be read, and those of which everything was compared."""
    client = boto3.client(
        "s3",
        endpoint_url=stack.url("s3"),
        region_name="us-east-1",
        aws_access_key_id=stack.settings["VITRINA_ACCESS_KEY_ID"],
        aws_secret_access_key=stack.settings["VITRINA_SECRET_ACCESS_KEY"],
    )

    def read(key: str) -> bytes:
        return bytes(client.get_object(Bucket="shop", Key=key)["Body"].read())

    files: dict[str, dict[str, str]] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="shop", Prefix="catalogue/"):
        for found in page.get("Contents", ()):
            photo, _, name = found["Key"].removeprefix("catalogue/").rpartition("/")
            files.setdefault(photo, {})[name.partition("-")[0]] = found["Key"]
    finished = 0
    for made in files.values():
        if {"image", "caption"} <= made.keys():
            Image.open(io.BytesIO(read(made["image"]))).load()
            finished += bool(json.loads(read(made["caption"]))["captions"]["en"])
    say(f"{finished} pictures with captions of {photos} photos")
    some = sorted(photo for photo, made in files.items() if "cutout" in made)[:LOOKED_AT]
    for photo in some:
        parts = {kind: Image.open(io.BytesIO(read(files[photo][kind]))) for kind in ("mask", "cutout", "image")}
        compare(photo, parts, Image.open(io.BytesIO(read(f"photos/{photo}"))))
    return finished, len(some)


def compare(photo: str, parts: dict[str, Image.Image], source: Image.Image) -> None:
    """See that mask, cut-out and picture are of this photo: alike in size, with a product and something around it that shows the photo's pixels."""
    sizes = {part.size for part in (*parts.values(), source)}
    if len(sizes) > 1:
        raise StackError(f"what was made of {photo} is of the sizes {sizes}")
    mask = np.asarray(parts["mask"].convert("L"))
    cutout = np.asarray(parts["cutout"].convert("RGBA")).astype(int)
    if not (mask.max() > mask.min() and cutout[..., 3].max() > cutout[..., 3].min()):
        raise StackError(f"mask or cut-out of {photo} is flat")
    # Along its edge the product mixes with what is behind it.
    inside = parts["cutout"].convert("RGBA").getchannel("A").filter(ImageFilter.MinFilter(FEATHERED))
    product = np.asarray(inside) == OPAQUE
    original = np.asarray(source.convert("RGB")).astype(int)
    picture = np.asarray(parts["image"].convert("RGB")).astype(int)
    for name, shown in (("cut-out", cutout[..., :3]), ("picture", picture)):
        off = float(np.abs(shown - original)[product].mean())
        if off > JPEG_LEVELS:
            raise StackError(f"the product in the {name} of {photo} is off by {off:.1f} levels of 255")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
