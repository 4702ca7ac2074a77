"""What a job would do, before anything is submitted: what would run and what is there, the time and the cost."""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from producer.manifest import look_up
from producer.masks import with_masks
from shared.errors import (
    ItemError,
    JobDamagedError,
    JobNotFoundError,
    ObjectMissingError,
    RecipeError,
    StorageRefusedError,
)
from shared.jobs import Job, list_jobs, load_summary, read_page
from shared.keys import STAGES, check_source_key
from shared.plan import Plan, chosen
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shared.keys import StageName
    from shared.messages import Item, Photo
    from shared.recipe import Recipe
    from shared.storage import Storage

CHECKED = 2000
"""Photos whose outputs are looked up, chosen at random among all: the shares of the rest are then known to about 2 %."""
JOBS, RECORDS = 20, 100
"""Jobs looked back at, and records read of each."""
MADE = {"segmentation": "to cut out", "inpainting": "backgrounds", "captioning": "to describe"}


@dataclass(frozen=True, slots=True)
class Past:
    """How fast earlier jobs at the same place were."""

    seconds: Mapping[str, float]
    """Of the device for one photo, by stage; a stage whose model never ran here is not in it."""
    pace: float | None = None
    """Images a second of the newest job with all these models."""
    job: str | None = None
    """That job."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would do. Counts beyond `checked` photos are shares of a sample."""

    photos: int
    checked: int
    refused: int
    """That can only fail: a key that is none, or a photo that a manifest names and the source lacks."""
    skipped: int
    """Whose outputs are all there."""
    runs: Mapping[str, int]
    """Photos that each stage would work on."""
    past: Past
    price: float | None = None
    """Of an hour of one device, in any currency."""

    @property
    def seconds(self) -> float | None:
        """How long it takes at the pace of an earlier job; None without one."""
        made = self.photos - self.skipped - self.refused
        return made / self.past.pace if self.past.pace else (0.0 if not made else None)

    @property
    def device_hours(self) -> float | None:
        """Hours that models compute for, over all stages; None while a stage that would run has no past."""
        waited = {stage: number for stage, number in self.runs.items() if number}
        if not waited.keys() <= self.past.seconds.keys():
            return None
        return sum(number * self.past.seconds[stage] for stage, number in waited.items()) / 3600

    @property
    def cost(self) -> float | None:
        """What these hours cost; workers that wait cost as well."""
        hours = self.device_hours
        return None if self.price is None or hours is None else hours * self.price

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self) | {"seconds": self.seconds, "device_hours": self.device_hours, "cost": self.cost}

    def lines(self) -> list[str]:
        """Say it to a person."""
        about = "" if self.checked == self.photos else f" (from a sample of {self.checked:,})"
        work = ", ".join(f"{self.runs[stage]:,} {MADE[stage]}" for stage in STAGES)
        lines = [
            f"{self.photos:,} photos; {self.skipped:,} are made already, {self.refused:,} can only fail{about}",
            work,
        ]
        if self.seconds is None:
            lines.append("time and cost: no job with these models has ended here yet; try --sample 100 first")
            return lines
        pace = f" at the {self.past.pace:.2f} images/s of job {self.past.job}" if self.seconds else ""
        lines.append(f"time: about {_duration(self.seconds)}{pace}")
        if self.device_hours is not None:
            cost = f", {self.cost:,.2f} at {self.price:g} an hour" if self.cost is not None else ""
            lines.append(
                f"devices: {self.device_hours:,.2f} hours of computing{cost}; hours that they wait come on top"
            )
        return lines


def estimate(
    photos: Iterable[Photo], source: Storage, destination: Storage, recipe: Recipe, price: float | None = None
) -> Estimate:
    """Count the photos and look up the outputs of a sample of them. Writes nothing. Raises `StorageError`."""
    number, sample = _sample(photos)
    plan = Plan(recipe)

    def missing(photo: Photo) -> tuple[str, ...]:
        """Name the stages that have something to do, or say `refused`."""
        try:
            check_source_key(photo.key)
        except ItemError:
            return ("refused",)
        if not photo.etag:
            return ("refused",)
        outputs = plan.outputs(photo.key, photo.etag, photo.fields)
        return tuple(stage for stage in STAGES if destination.head(outputs.marker(stage)) is None)

    looked_up = with_masks(look_up(sample, source), source, recipe)
    found = list(in_parallel(destination, missing, looked_up))
    counted = Counter(stage for stages in found for stage in stages)
    scale = number / len(sample) if sample else 0.0
    return Estimate(
        photos=number,
        checked=len(sample),
        refused=round(counted["refused"] * scale),
        skipped=round(sum(not stages for stages in found) * scale),
        runs={stage: round(counted[stage] * scale) for stage in STAGES},
        past=_past(destination, recipe),
        price=price,
    )


def _sample(photos: Iterable[Photo]) -> tuple[int, list[Photo]]:
    """Count the photos and keep some of them, each as likely as any other (reservoir sampling)."""
    chance = random.Random(0)  # noqa: S311 - the same sample each time
    kept: list[Photo] = []
    number = 0
    for photo in photos:
        number += 1
        if len(kept) < CHECKED:
            kept.append(photo)
        elif (place := chance.randrange(number)) < CHECKED:
            kept[place] = photo
    return number, kept


def _past(destination: Storage, recipe: Recipe) -> Past:
    """Look back at the newest jobs whose records can be read."""
    models = {stage: (chosen(recipe, stage).model, Plan(recipe).revision(stage)) for stage in STAGES}
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}
    pace, named = None, None
    try:
        names = deque(list_jobs(destination), JOBS)
    except StorageRefusedError:
        names = deque()  # a folder that the job will make
    for name in reversed(names):
        try:
            job = Job.load(name, destination)
            summary = load_summary(destination, name)
            page = read_page(destination, name, 0)
        except (JobDamagedError, JobNotFoundError, ObjectMissingError, RecipeError):
            continue  # of another release, or never begun
        plan = Plan(job.recipe)
        same = [stage for stage in STAGES if models[stage] == (chosen(job.recipe, stage).model, plan.revision(stage))]
        if pace is None and summary and len(same) == len(STAGES) and summary.get("images_per_second"):
            pace, named = float(summary["images_per_second"]), name
        wanted: list[StageName] = [stage for stage in same if len(spent[stage]) < RECORDS]
        if wanted:
            for times in _times(page[:RECORDS], plan, destination):
                for stage in wanted:
                    spent[stage] += [times[stage]] if stage in times else []
    return Past({stage: statistics.fmean(times) for stage, times in spent.items() if times}, pace, named)


def _times(items: list[Item], plan: Plan, destination: Storage) -> list[dict[str, float]]:
    """Read how long each item's models took, by stage."""

    def read(item: Item) -> dict[str, float]:
        try:
            key = plan.outputs(item.key, item.etag, item.fields).key("caption")
            stages = json.loads(destination.get(key).data)["stages"]
            return {stage: float(stages[stage]["seconds"]["infer"]) for stage in STAGES if stage in stages}
        except (ItemError, ObjectMissingError, ValueError, KeyError, TypeError):
            return {}  # not made, or by a model that needs no time

    return list(in_parallel(destination, read, items))


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
