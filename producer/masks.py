"""Masks that lie beside the photos: looked up while listing, so that a corrected mask makes new outputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from shared.errors import KeyRefusedError
from shared.keys import mask_key
from shared.recipe import SuppliedSegmentation
from shared.storage import in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shared.messages import Photo
    from shared.recipe import Recipe
    from shared.storage import Storage

PORTION = 256
"""Masks looked up ahead of the one that is asked for."""


def reads_masks(recipe: Recipe) -> bool:
    """Tell whether the recipe takes masks from beside the photos."""
    return isinstance(recipe.segmentation, SuppliedSegmentation) and recipe.segmentation.mask == "supplied"


def with_masks(photos: Iterable[Photo], source: Storage, recipe: Recipe) -> Iterator[Photo]:
    """Yield the photos in order, each with its mask's ETag in its fields; one without a mask is left for the worker to refuse."""
    segmentation = recipe.segmentation
    if not isinstance(segmentation, SuppliedSegmentation) or segmentation.mask != "supplied":
        yield from photos
        return
    pattern = segmentation.mask_key

    def look(photo: Photo) -> Photo:
        try:
            stat = source.head(mask_key(photo.key, photo.fields.get("mask") or pattern))
        except KeyRefusedError:
            stat = None  # a name that the source never lists, such as a hidden file's
        return replace(photo, fields={**photo.fields, "mask_etag": stat.etag}) if stat else photo

    waiting = iter(photos)
    while portion := list(islice(waiting, PORTION)):
        yield from in_parallel(source, look, portion)
