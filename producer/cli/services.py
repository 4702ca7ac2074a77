"""Commands that run things: worker, flower, up, demo."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from producer.cli.common import BrokerOption, EndpointOption, JsonOption, check_report, err, load_settings
from producer.cli.run import check_needs, run_job
from producer.cli.telling import tell
from producer.collect import REPORT_ITEMS, Collector
from producer.copying import copy_objects
from producer.embedded import Stack, scratch
from producer.flower import run_flower
from producer.gpus import take, visible
from producer.inputs import address, open_source
from producer.launch import env_for, worker_command
from producer.recipes import find_recipe
from producer.samples import write_samples
from producer.session import Session, create_job
from shared.connection import connect
from shared.errors import UsageError
from shared.keys import STAGES
from shared.recipe import Recipe
from shared.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.keys import StageName
    from shared.settings import Settings

BUCKET = "vitrina"
STARTER = "these are the starter models, small enough for any CPU: what they are not sure of is left to review. `vitrina models list` names the large ones"
DEMO = Path("vitrina-demo")
"""Where demos end, unless told otherwise."""


def check_stage(stage: str) -> StageName:
    """Return the stage of that name. Raises `UsageError`."""
    for known in STAGES:
        if stage == known:
            return known
    raise UsageError(f"no stage {stage!r}: choose {', '.join(STAGES)}")


def _become_worker(stage: StageName, settings: Settings) -> NoReturn:
    connect(settings).close()  # an address that cannot be one is told here, in one line
    if settings.device == "auto" and len(gpus := visible()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = take(settings.gpu_claims, gpus)
    command = worker_command(stage, settings)
    os.execve(sys.executable, command, os.environ | env_for(settings))  # noqa: S606 - our own command


def register(app: typer.Typer) -> None:
    """Add the commands that run things."""

    @app.command(epilog="Example:  vitrina worker segmentation --broker redis://queue:6379/0")
    def worker(
        stage: str = typer.Argument(help=f"One of {', '.join(STAGES)}."),
        recipe: str | None = typer.Option(
            None, help="Load this recipe's model at the start: a file, or a packaged one's name."
        ),
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> None:
        """Run a worker of one stage in the foreground. It waits for a broker that does not answer."""
        preload = find_recipe(recipe).absolute() if recipe else None
        settings = load_settings(broker=broker, endpoint_url=endpoint_url, preload=preload)
        _become_worker(check_stage(stage), settings)

    @app.command(epilog="Example:  VITRINA_FLOWER_AUTH=user:password VITRINA_FLOWER_ADDRESS=0.0.0.0 vitrina flower")
    def flower(broker: str | None = BrokerOption) -> int:
        """Run Flower in the foreground: queues, workers and tasks in a browser. VITRINA_FLOWER_* settings say where, and for whom."""
        return run_flower(load_settings(broker=broker))

    @app.command(epilog="Example:  vitrina up")
    def up() -> int:
        """Run the embedded stack in the foreground: broker, S3 server, a worker per stage, Flower."""
        settings = load_settings()
        with (
            scratch() as folder,
            Stack(settings, s3=True, workers=STAGES, flower=True, data_dir=folder) as stack,
        ):
            open_bucket(stack.settings)
            broker = stack.settings.broker.get_secret_value()
            err.print(f"broker    {broker}\nS3        {stack.settings.endpoint_url}  (bucket {BUCKET})", soft_wrap=True)
            err.print(f"Flower    {stack.flower_url}\nlogs      {folder}/logs\nCtrl-C stops everything", soft_wrap=True)
            keys = (
                "VITRINA_ACCESS_KEY_ID=vitrina VITRINA_SECRET_ACCESS_KEY=vitrina"  # the embedded server's, on loopback
            )
            err.print(
                f"\nin another terminal:\nexport VITRINA_BROKER={broker} VITRINA_ENDPOINT_URL={stack.settings.endpoint_url} {keys}\n"
                f"vitrina run PHOTOS --out s3://{BUCKET}/catalogue",
                soft_wrap=True,
            )
            wait_for_the_end(stack.look_after)
        return 0

    @app.command(epilog="Example:  vitrina demo photos --to my-catalogue")
    def demo(
        photos: str | None = typer.Argument(None, help="Folder of photos; without one, sample photos."),
        to: Path | None = typer.Option(
            None, "--to", help="Folder for the outputs and the report; else one per source below vitrina-demo."
        ),
        as_json: bool = JsonOption,
    ) -> int:
        """Show everything: start the embedded stack, make a catalogue in its bucket, bring it here."""
        settings = load_settings()
        folder = (to or demo_folder(photos)).absolute()
        beside = ", beside those of earlier demos" if (folder / "catalogue" / "jobs").is_dir() else ""
        here = open_storage(str(folder / "catalogue"), settings)
        here.check_writable()  # told before anything is started, as what follows
        check_report(folder / "report.html", "--to")
        check_needs(Recipe(), settings)
        originals = open_source(photos or sample_photos(folder / "photos"), settings)
        with (
            scratch() as data,
            Stack(settings, s3=True, workers=STAGES, flower=True, data_dir=data) as stack,
        ):
            open_bucket(stack.settings)
            err.print(f"Flower: {stack.flower_url}", soft_wrap=True)
            source = open_storage(f"s3://{BUCKET}/photos", stack.settings)
            destination = open_storage(f"s3://{BUCKET}/catalogue", stack.settings)
            copy_objects(originals, source)
            job = create_job(source, destination, Recipe())
            session = Session(job, source, destination, stack.settings)
            summary = run_job(session, None, stack.look_after)
            copy_objects(destination, here)
            # The bucket ends with the stack: the report tells of the originals and the copies.
            told = replace(job, source=originals.url, destination=here.url)
            collector = Collector(told, source, here, session.progress, stack.settings)
            collector.write(folder / "report.html", summary, limit=REPORT_ITEMS)
            status = tell(replace(summary, report=str(folder / "report.html")), as_json=as_json)
            err.print(f"outputs: {folder / 'catalogue'}{beside}", soft_wrap=True)
            err.print(STARTER, soft_wrap=True)
            if err.is_terminal:
                err.print(f"Flower: {stack.flower_url} until Ctrl-C")
                wait_for_the_end(stack.look_after)
            else:
                err.print(f"Flower was at {stack.flower_url}; `vitrina up` keeps the stack running", soft_wrap=True)
        return status


def demo_folder(photos: str | None) -> Path:
    """Give each source a folder of its own, so that two catalogues never mix."""
    if photos is None:
        return DEMO / "samples"
    place = address(photos)
    return DEMO / f"{Path(place).name or 'photos'}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:6]}"


def sample_photos(folder: Path) -> str:
    """Write the sample photos and return where they are. Raises `UsageError`."""
    try:
        if lacking := write_samples(folder):
            err.print(f"this release of scikit-image has no picture for {', '.join(lacking)}", soft_wrap=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}: give --to another folder") from None
    return str(folder)


def wait_for_the_end(look_after: Callable[[], None]) -> None:
    """Keep the services running until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1):
        look_after()


def open_bucket(settings: Settings) -> None:
    """Make the demo bucket."""
    from shared.storage.s3 import S3Storage  # noqa: PLC0415 - boto3 only where S3 is used

    S3Storage.from_settings(f"s3://{BUCKET}", settings).ensure_bucket()
