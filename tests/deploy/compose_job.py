"""`make compose-test`: the stack of docker-compose.yml makes a catalogue while a stage is scaled, workers die and the broker restarts.

compose_job.py [PHOTOS]. Progress goes to standard error; the last line of standard output is one JSON object:

- items, done, failed: as the job counts them; lost: items that are neither
- finished: photos whose picture and caption lie in the bucket and can be read
- producer_image_mb, worker_image_mb: what the images add to their base
- rebuild_seconds: to build both again after a change of code
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import boto3
from compose_stack import (
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
from PIL import Image

from producer.samples import write_samples
from shared.keys import STAGES

ENOUGH = 160
"""Photos, so that the job still runs when everything has been done to it: half a minute on two cores."""
JOB_SECONDS = 1200
KILL_WORKER = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
"""In a container: its first process is tini, which ends when the worker does."""
PICTURES = {".avif", ".bmp", ".gif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}


def main(arguments: list[str]) -> int:
    """Return 0 when every photo is in the catalogue, or when there is no Docker; 1 when not."""
    absent = missing()
    if absent:
        say(f"skipped: {absent}. Install Docker with Compose 2, start it, and run this again")
        return 0
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
    right = result["items"] == result["done"] == result["finished"] == photos and not result["lost"]
    return 0 if right else 1


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
    stack.choose_images()
    say("building")
    stack.build()
    copy = folder / "changed"
    copy.mkdir()
    seconds = rebuild_seconds(stack, copy, ("keeper", "segmentation"))
    say(f"built again after a change of code in {seconds:.1f} s; starting")
    stack.compose("up", "--detach", "--wait", "--wait-timeout", str(START_SECONDS), seconds=START_SECONDS + 60)
    check_flower(stack)
    stack.producer("copy", "/photos", "s3://shop/photos", volume=f"{folder / 'photos'}:/photos:ro")
    submitted = stack.producer("submit", "s3://shop/photos", "--out", "s3://shop/catalogue", "--json")
    job = str(json.loads(submitted.strip().splitlines()[-1])["job"])
    say(f"job {job} of {photos} photos")
    torment(stack, job, photos)
    until(lambda: ended(stack, job), "end of the job", seconds=JOB_SECONDS)
    counts = stack.status(job)
    return {
        "items": counts["items"],
        "done": counts["done"],
        "finished": finished(stack, photos),
        "failed": counts["failed"],
        "lost": counts["items"] - counts["done"] - counts["failed"],
        "producer_image_mb": round(image_megabytes("vitrina/producer")),
        "worker_image_mb": round(image_megabytes("vitrina/worker-cpu")),
        "rebuild_seconds": round(seconds, 1),
    }


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


def check_flower(stack: Stack) -> None:
    """Ask Flower for its workers: it wants the password, and then shows one of each stage."""
    address = f"http://127.0.0.1:{stack.settings['FLOWER_PORT']}/flower/workers?json=1"
    try:
        urllib.request.urlopen(address, timeout=10)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.UNAUTHORIZED:
            raise StackError(f"Flower answers {error.code} to a caller without a password") from None
    else:
        raise StackError("Flower shows everything to a caller without a password")
    login = base64.b64encode(stack.settings["VITRINA_FLOWER_AUTH"].encode()).decode()
    asked = urllib.request.Request(address, headers={"Authorization": f"Basic {login}"})

    def all_stages() -> bool:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            workers = [each["hostname"] for each in json.load(answer)["data"]]
        return sorted(name.partition("-")[0] for name in workers) == sorted(STAGES)

    until(all_stages, "worker of each stage in Flower", seconds=60)


def finished(stack: Stack, photos: int) -> int:
    """Count the photos whose picture can be decoded and whose caption can be read."""
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{stack.settings['S3_PORT']}",
        region_name="us-east-1",
        aws_access_key_id=stack.settings["VITRINA_ACCESS_KEY_ID"],
        aws_secret_access_key=stack.settings["VITRINA_SECRET_ACCESS_KEY"],
    )
    pictures, captions = set(), set()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="shop", Prefix="catalogue/"):
        for found in page.get("Contents", ()):
            photo, _, name = found["Key"].removeprefix("catalogue/").rpartition("/")
            if not name.startswith(("image-", "caption-")):
                continue
            data = client.get_object(Bucket="shop", Key=found["Key"])["Body"].read()
            if name.startswith("image-"):
                Image.open(io.BytesIO(data)).load()
                pictures.add(photo)
            elif json.loads(data)["captions"]["en"]:
                captions.add(photo)
    say(f"{len(pictures)} pictures and {len(captions)} captions of {photos} photos")
    return len(pictures & captions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
