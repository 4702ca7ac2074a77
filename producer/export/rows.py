"""One flat row per item: the columns of CSV, Parquet and JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from shared.errors import UsageError
from shared.plan import picture_kinds

if TYPE_CHECKING:
    from producer.results import Result
    from shared.recipe import Recipe

FIXED = ("index", "key", "id", "title", "category", "outcome", "reasons", "stage", "detail")
NUMBERS = {"index", "width", "height"}


class Columns:
    """Names the columns of a job and fills them in."""

    def __init__(self, recipe: Recipe, base_url: str | None = None) -> None:
        """`base_url` is the http(s) address under which the output storage is served; without it outputs are keys. Raises `UsageError`."""
        if base_url is not None and urlsplit(base_url).scheme not in {"http", "https"}:
            raise UsageError(f"--base-url {base_url!r} is no web address: give one that begins with https://")
        self._base = base_url.rstrip("/") + "/" if base_url else None
        self.languages: tuple[str, ...] = tuple(getattr(recipe.caption, "languages", ()))
        """Of the captions."""
        self._kinds = ("mask", "cutout", *picture_kinds(recipe))
        self.names = (*FIXED, *(f"caption_{language}" for language in self.languages), *self._kinds, "width", "height")
        """In the order of the columns."""

    def link(self, key: str) -> str:
        """Return an output's address, or its key where there is no base address."""
        return self._base + quote(key) if self._base else key

    def row(self, result: Result) -> dict[str, Any]:
        """Return a value for every column; None where there is nothing to say."""
        said = {name: result.fields.get(name) for name in ("id", "title", "category")}
        width, height = result.size or (None, None)
        return {
            "index": result.index,
            "key": result.key,
            **said,
            "outcome": result.outcome,
            "reasons": ", ".join(result.reasons) or None,
            "stage": result.stage or None,
            "detail": result.detail or None,
            **{f"caption_{language}": result.captions.get(language) for language in self.languages},
            **{kind: self.link(result.outputs[kind]) if kind in result.outputs else None for kind in self._kinds},
            "width": width,
            "height": height,
        }
