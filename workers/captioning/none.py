"""The choice of no caption: the item's record is written without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from workers.stage import Artifact, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.recipe import Recipe
    from workers.stage import Work


class NoCaptionModel:
    """Looks at nothing and says nothing."""

    name = "none"

    def reads(self, recipe: Recipe) -> tuple[str, ...]:
        """Read no file."""
        del recipe
        return ()

    @property
    def max_batch(self) -> int:
        """Run photos one by one. Nothing is inferred, so nothing is gained by waiting for others."""
        return 1

    def load(self, device: str, threads: int) -> None:
        """Load nothing."""

    def prepare(self, work: Work) -> None:
        """Prepare nothing."""

    def bucket(self, item: None) -> int:
        """Share one bucket."""
        del item
        return 0

    def infer(self, batch: Sequence[None]) -> Sequence[None]:
        """Return nothing for each."""
        return batch

    def finish(self, work: Work, item: None, output: None) -> Result:
        """Write a record without captions."""
        del work, item, output
        return Result({"caption": Artifact(json.dumps({"captions": {}}).encode(), "application/json")})
