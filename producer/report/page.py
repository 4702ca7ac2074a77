"""Writes the report, piece by piece, so that its size is bounded by the disk and not by memory."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import unicodedata
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from producer.report.reasons import explain
from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from producer.report.records import Card, Summary

_HERE = Path(__file__).parent

LIVE_CARDS = 500
"""Cards that the browser draws at once, and all that is shown without JavaScript; later ones lie in inert templates."""

PAGE_CARDS = 100
"""Cards of one page, once there are more than `LIVE_CARDS`."""

_STAGES = {"segmentation": "Cut-out", "inpainting": "Background", "captioning": "Caption"}
_KINDS = {"source": "Photo", "mask": "Mask", "cutout": "Cut-out", "image": "Result", "caption": "Record"}
_LINK_SCHEMES = {"", "http", "https", "file"}
_MAGIC = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF", "webp"))

# C0/C1 controls except tab and newline, line and paragraph separators, bidirectional controls, halves of surrogate pairs: all
# of them can make a name look like another one, and none can be seen.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def write_report(path: Path, summary: Summary, cards: Iterable[Card]) -> None:
    """Write the report to `path`, replacing an older one only when it is complete.

    `cards` is read once and one at a time; give failures first, then what needs review, then the rest, for that is the order shown
    (and only the first `LIVE_CARDS` are shown to a browser without JavaScript). Missing folders are made. Raises `UsageError` when
    the file cannot be written; what `cards` raises passes through and leaves an older report as it was.
    """
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Text that is no Unicode (a file name from a disk, say) must not cost the whole report.
        with partial.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(_pieces(summary, cards))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        msg = f"cannot write the report to {path}: {error.strerror or error}; choose another place or free some space"
        raise UsageError(msg) from error
    finally:
        with suppress(OSError):  # it may never have come to be, and the first error is the one to tell
            partial.unlink()


class _Tally:
    """Counts the cards that pass by, so that the end of the page can say how many there were."""

    def __init__(self) -> None:
        self.cards = 0

    def count(self, cards: Iterable[Card]) -> Iterator[tuple[bool, Card]]:
        """Yield whether a card is live, and the card."""
        for card in cards:
            self.cards += 1
            yield self.cards <= LIVE_CARDS, card


def _pieces(summary: Summary, cards: Iterable[Card]) -> Iterator[str]:
    tally = _Tally()
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("template.html")
        .generate(
            summary=summary,
            cards=tally.count(cards),
            tally=tally,
            live_cards=LIVE_CARDS,
            page_cards=PAGE_CARDS,
            style=Markup(style),  # noqa: S704 - our own file
            style_hash=_csp_hash(style),
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=_csp_hash(script),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": _data_uri,
        "duration": _duration,
        "explain": explain,
        "href": _href,
        "kind": _kind,
        "moment": _moment,
        "number": _number,
        "row": _row,
        "search_text": _search_text,
        "shares": _shares,
        "stage": _stage,
        "variants": _variants,
    }
    return environment


def _visible(value: Any) -> Any:
    """Make unseen characters seen; runs on every value that enters the page, before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", value)
    return value


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data_uri(data: bytes) -> str:
    """Give a thumbnail as an address; empty for what a browser would not show as a picture."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return ""


def _variants(pictures: Mapping[str, bytes | Sequence[bytes]], kind: str) -> list[str]:
    """List the addresses of one kind's thumbnails, without those that are not pictures."""
    found = pictures.get(kind, ())
    files = [found] if isinstance(found, bytes) else list(found)
    return [uri for uri in map(_data_uri, files) if uri]


def _href(link: str) -> str:
    """Return a link that is safe to follow, else the empty string (`javascript:` is the reason; `s3:` opens nowhere)."""
    try:
        scheme = urlsplit(link).scheme
    except ValueError:
        return ""
    # Browsers drop control characters and spaces around a scheme before they read it.
    return link if scheme in _LINK_SCHEMES and not _UNSEEN.search(link) and link == link.strip() else ""


def _search_text(card: Card) -> str:
    """Join what the search looks through, folded the same way as the query is in report.js."""
    merchants = (str(card.fields.get(name, "")) for name in ("id", "title", "category"))
    words = [card.key, *merchants, *card.captions.values(), card.detail]
    for reason in card.reasons:
        words += [reason, explain(reason).title]
    return unicodedata.normalize("NFC", " ".join(filter(None, words))).lower().replace("ё", "е")  # noqa: RUF001 - Cyrillic is meant


def _row(card: Card) -> str:
    """Write the item's row of a manifest as JSON, in ASCII so that every character of the key comes through."""
    fields = {name: value for name, value in card.fields.items() if name != "mask_etag"}
    return json.dumps({"key": card.key, **fields}, default=str)


def _stage(name: str) -> str:
    return _STAGES.get(name, name)


def _kind(name: str) -> str:
    """Name a kind of file; `image_2` is the second variant."""
    kind, _, variant = name.partition("_")
    return f"Variant {variant}" if kind == "image" and variant else _KINDS.get(name, name)


def _shares(values: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Give name, value and percent of the largest value."""
    largest = max(values.values(), default=0)
    return [(name, value, round(100 * value / largest, 2) if largest > 0 else 0.0) for name, value in values.items()]


def _number(value: float) -> str:
    """Write a count with separators, a rate with as many digits as matter."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


def _duration(seconds: float) -> str:
    """Write seconds in the units people would say."""
    minute, hour = 60, 3600
    if round(seconds * 1000) < 1000:  # noqa: PLR2004 - a second
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 10:  # noqa: PLR2004 - two digits
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < minute:
        return f"{whole} s"
    if whole < hour:
        return f"{whole // minute} min {whole % minute:02d} s"
    return f"{whole // hour:,} h {whole % hour // minute:02d} min"


def _moment(started: str) -> str:
    """Write an ISO 8601 moment for people; anything else stays as it is."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()
