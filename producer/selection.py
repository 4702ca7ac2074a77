"""Which photos of a source a job takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.listing import list_photos
from producer.manifest import Manifest
from shared.errors import UsageError
from shared.jobs import read_pages
from shared.messages import Photo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.recipe import Recipe
    from shared.storage import Storage


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for; kept in the job's record, so that another producer can go on."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    modified_since: float = 0
    limit: int | None = None
    sample: int | None = None
    manifest: str | None = None
    """Path of a manifest; None for all photos of the source."""
    job: str | None = None
    """Another job whose items are taken, as they were listed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, without what was not asked for."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Selection:
        """Read the JSON-able form."""
        return cls(**data)

    def check(self) -> list[str]:
        """Look for what cannot work, before anything is submitted, and return what a person should know. Raises `UsageError`."""
        if not self.manifest:
            return []
        manifest = Manifest(Path(self.manifest))
        rows = manifest.check()
        ignored = f"; not used: {', '.join(manifest.ignored)}" if manifest.ignored else ""
        return [f"{self.manifest}: {rows} rows{ignored}"]

    def photos(
        self, source: Storage, destination: Storage, recipe: Recipe, *, listed: int = 0, last: str = ""
    ) -> Iterator[Photo]:
        """Yield the photos in a repeatable order, without the first `listed`, the last of which was `last`."""
        if self.job:
            items = (item for page in read_pages(destination, self.job) for item in page)
            return islice((Photo(item.key, item.etag, item.fields) for item in items), listed, None)
        if self.manifest:
            return islice(Manifest(Path(self.manifest)).photos(source), listed, None)
        return list_photos(source, destination, recipe, after=last)


def parse_since(text: str) -> float:
    """Read a date, or a time back from now such as `24h` or `7d`, as seconds since the epoch. Raises `UsageError`."""
    raise UsageError(f"not a time: {text!r}")
