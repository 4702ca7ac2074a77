"""Running a model once before its first item, so that no item waits for what only happens once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.settings import USUAL_BATCH
from workers.batcher import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable


def warm_up(run: Callable[[int], object], *, compiled: bool, limits: tuple[int | None, ...]) -> None:
    """Call `run` with the sizes of batches that prepare a model for all others.

    A compiler takes the first size as it is and learns from the second that sizes vary. What it then makes is bound to what it had in view:
    from sixteen rows on, which a batch of eight with guidance is, convolutions are laid out anew. So the largest batch, the smallest
    of `limits`, is run as well, unless it does not fit: then the batcher is going to find out what does.
    """
    most = min(filter(None, limits), default=USUAL_BATCH)
    for size in sorted({1, min(2, most), most}) if compiled else (1,):
        try:
            run(size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            return
