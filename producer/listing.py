"""Lists the photos of a source lazily, in ascending key order."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from shared.messages import Photo
from shared.recipe import SuppliedSegmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.recipe import Recipe
    from shared.storage import Stat, Storage

log = logging.getLogger(__name__)

_DESKTOPS = re.compile(r"(?:^|/)(?:thumbs\.db|desktop\.ini|\.ds_store|\._[^/]*)$", re.IGNORECASE)
# Files that Windows and macOS put into every folder that somebody has looked at.
_OUTPUTS = re.compile(
    r"\.(?i:jpe?g|png|webp|avif|gif|tiff?|bmp)/(?:mask|cutout|image|caption)-[0-9a-f]{16}\.[a-z]+$"
    r"|(?:^|/)jobs/\d{8}-\d{6}-[0-9a-f]{6}/|(?:^|/)(?:backgrounds|watching)/[0-9a-f]{16}\.\w+$"
)
# What jobs write, by the names it has: an earlier catalogue below the photos would become photos itself.
_told: set[str] = set()
# The sources that this process has told so of.


def list_photos(
    source: Storage,
    destination: Storage,
    recipe: Recipe | None = None,
    *,
    after: str = "",
    wanted: Callable[[Stat], bool] = lambda _: True,
) -> Iterator[Photo]:
    """Yield the source's objects that may be photos and are `wanted`."""
    may_be = may_be_photo(source, destination, recipe)
    for stat in source.list(after=after, ahead=True):
        if may_be(stat.key) and wanted(stat):
            yield Photo(stat.key, stat.etag)


def may_be_photo(source: Storage, destination: Storage, recipe: Recipe | None = None) -> Callable[[str], bool]:
    """Return what tells photos by their keys: no outputs, of this job or of others that lie inside the source, nor masks beside the photos, nor what desktops leave."""
    root, inside = source.url.rstrip("/") + "/", destination.url.rstrip("/") + "/"
    own = inside.removeprefix(root) if inside.startswith(root) else None
    masks = _mask_names(recipe) if recipe else None

    def may_be(key: str) -> bool:
        if (own is not None and key.startswith(own)) or _DESKTOPS.search(key):
            return False
        if _OUTPUTS.search(key):
            _tell_outputs(source.url, key)
            return False
        return masks is None or not masks.fullmatch(key)

    return may_be


def _tell_outputs(source: str, key: str) -> None:
    if source not in _told:  # a watch lists its source again and again
        _told.add(source)
        log.warning("%s holds outputs of other jobs, such as %s: they are left out", source, key)


def _mask_names(recipe: Recipe) -> re.Pattern[str] | None:
    """Turn the recipe's `mask_key` around: a pattern that matches the names it gives to masks; None when it takes none."""
    segmentation = recipe.segmentation
    if not isinstance(segmentation, SuppliedSegmentation) or segmentation.mask != "supplied":
        return None
    pattern = re.escape(segmentation.mask_key)
    # A key ends like a photo's: with `{key}.png`, the photo `mug.png` is no mask of a photo `mug`.
    for field, text in (("key", r".*[^/]\.(?i:jpe?g|png|webp)"), ("stem", r".*[^/]")):
        name = re.escape(f"{{{field}}}")
        pattern = pattern.replace(name, f"(?P<{field}>{text})", 1).replace(name, f"(?P={field})")
    return re.compile(pattern, re.DOTALL)
