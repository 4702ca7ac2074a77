"""The merchant's own product feed with our pictures and texts in it: Google Merchant's XML and Yandex's YML, item by item."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self
from xml.dom import minidom, pulldom
from xml.parsers import expat
from xml.sax import SAXException, saxutils

from shared.errors import UsageError
from shared.temporary import in_temporary, open_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from producer.export.rows import Columns
    from producer.results import Result

TITLE, DESCRIPTION, YML_DESCRIPTION = 150, 5000, 3000
"""Characters that Google Merchant takes of a title and a description, and Yandex of a description."""
MORE_PICTURES = 10
"""Additional pictures that both take at most."""
MIN_SIDE, MAX_PIXELS = 100, 64_000_000
"""Google Merchant's limits on a picture, in pixels."""
_BLOCK = 1 << 16
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What goes into the feed."""

    on: str = "id"
    """The element of the feed, or for YML the offer's `id`, that holds what our items know as `id`."""
    language: str = "en"
    replace_texts: bool = False
    """Put our texts in place of the merchant's; without it they only fill what is missing."""
    keep_pictures: bool = False
    """Keep the merchant's first picture as an additional one."""


@dataclass(slots=True)
class Feed:
    """How a feed was joined."""

    items: int = 0
    """In the merchant's feed."""
    joined: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Of our results that could not go in, how many and why."""

    def leave_out(self, why: str) -> None:
        """Count what could not go in."""
        self.left_out[why] = self.left_out.get(why, 0) + 1


class Index(AbstractContextManager["Index"]):
    """Our results by id: memory stays flat."""

    def __init__(self, results: Iterator[Result]) -> None:
        with in_temporary():
            self._db = open_temporary()
            self._db.execute(
                "CREATE TABLE results (id TEXT PRIMARY KEY, said TEXT, taken INTEGER DEFAULT 0) WITHOUT ROWID"
            )
            rows = ((str(result.fields.get("id") or result.key), json.dumps(result.to_dict())) for result in results)
            self._db.executemany("INSERT OR IGNORE INTO results (id, said) VALUES (?, ?)", rows)

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM results").fetchone()[0])

    def take(self, name: str) -> tuple[dict[str, Any] | None, bool]:
        """Return what became of an item, None for one that is not ours, and whether it was asked for before."""
        found = self._db.execute("SELECT said, taken FROM results WHERE id = ?", (name,)).fetchone()
        if found is None:
            return None, False
        self._db.execute("UPDATE results SET taken = 1 WHERE id = ?", (name,))
        return json.loads(found[0]), bool(found[1])


def join(
    kind: str, feed: Path, results: Iterator[Result], columns: Columns, options: FeedOptions, file: IO[bytes]
) -> Feed:
    """Copy the merchant's feed with our pictures and texts in the items that we know. Raises `UsageError` for what is no such feed."""
    element, fill = FEEDS[kind]
    told = Feed()
    with Index(results) as index:
        ours = len(index)

        def each(node: minidom.Element) -> None:
            told.items += 1
            name = _name(node, options.on, kind)
            if name is None:
                raise UsageError(f"{feed}: item {told.items} has no {options.on}: choose another with --on")
            known, again = index.take(name)
            if again:
                told.leave_out("named twice in the feed")
            if known is not None:
                fill(node, known, columns, options, told)
                told.joined += not again

        _copy(feed, element, each, file)
        if not told.items:
            raise UsageError(f"{feed} has no {' or '.join(sorted(element))}: is it a feed of {kind}?")
        missing = ours - told.joined
        if missing > 0:
            told.left_out["not in the feed"] = missing
    return told


def _copy(feed: Path, elements: frozenset[str], each: Callable[[minidom.Element], None], file: IO[bytes]) -> None:
    """Write a feed as it is, but for its items, which `each` may change; one item in memory at a time."""
    try:
        with feed.open("rb") as source:
            _refuse_entities(feed, source)
            source.seek(0)
            file.write(b'<?xml version="1.0" encoding="UTF-8"?>\n')
            events: Any = pulldom.parse(source)  # noqa: S319 - no entities, as was seen; expat fetches nothing
            for event, node in events:
                if event == pulldom.START_ELEMENT and node.tagName in elements:
                    events.expandNode(node)
                    each(node)
                    file.write(node.toxml().encode(errors="xmlcharrefreplace"))
                    node.unlink()  # its parts refer to each other, and would wait for the collector
                else:
                    file.write(_token(event, node).encode())
    except SAXException as error:
        line = getattr(error, "getLineNumber", lambda: "?")()
        raise UsageError(f"{feed}, line {line}: not well-formed XML ({error.getMessage()})") from None
    except OSError as error:
        raise UsageError(f"cannot read the feed {feed}: {error.strerror}") from None


def _refuse_entities(feed: Path, source: IO[bytes]) -> None:
    """Read what stands before the first element, where alone entities can be declared, which may grow without end. Raises `UsageError`."""
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise UsageError(f"{feed} declares entities, which no feed needs: remove them")

    begun: list[str] = []
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda name, _: begun.append(name)
    try:
        while not begun and (block := source.read(_BLOCK)):
            parser.Parse(block)
    except expat.ExpatError:
        pass  # said with its line by who reads the feed


def _token(event: str, node: Any) -> str:
    if event == pulldom.START_ELEMENT:
        attributes = "".join(f" {name}={saxutils.quoteattr(value)}" for name, value in node.attributes.items())
        return f"<{node.tagName}{attributes}>"
    if event == pulldom.END_ELEMENT:
        return f"</{node.tagName}>"
    if event in {pulldom.CHARACTERS, pulldom.IGNORABLE_WHITESPACE}:
        return saxutils.escape(node.data)
    if event == pulldom.COMMENT:
        return f"<!--{node.data}-->"
    return ""


def _name(node: minidom.Element, on: str, kind: str) -> str | None:
    if kind == "yml" and on == "id":
        return node.getAttribute("id") or None
    for child in _children(node, on, f"g:{on}"):
        return _text_of(child).strip() or None
    return None


def _children(node: minidom.Element, *names: str) -> list[Any]:
    return [child for child in node.childNodes if getattr(child, "tagName", None) in names]


def _text_of(node: Any) -> str:
    return "".join(
        child.data for child in node.childNodes if child.nodeType in {child.TEXT_NODE, child.CDATA_SECTION_NODE}
    )


def _element(node: minidom.Element, name: str, text: str = "") -> Any:
    document = node.ownerDocument or minidom.Document()
    made = document.createElement(name)
    if text:
        made.appendChild(document.createTextNode(_FORBIDDEN.sub("", text)))
    return made


def _set(node: minidom.Element, name: str, text: str, *others: str) -> list[str]:
    """Give an item one element of a name, in the place of those it has of that or other names; return what these said."""
    old = _children(node, name, *others)
    made = _element(node, name, text)
    if old:
        node.insertBefore(made, old[0])
    else:
        node.appendChild(made)
    for child in old:
        node.removeChild(child)
    return [_text_of(child).strip() for child in old]


def _texts(known: dict[str, Any], language: str) -> tuple[str, str]:
    """Return the title, where a model wrote one, and the description."""
    details = known.get("details", {}).get(language, {})
    caption = known.get("captions", {}).get(language, "")
    return str(details.get("title", "")), str(details.get("description", "") or caption)


def _fill_google(
    node: minidom.Element, known: dict[str, Any], columns: Columns, options: FeedOptions, told: Feed
) -> None:
    width, height = known.get("size") or (MIN_SIDE, MIN_SIDE)
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        told.leave_out(f"pictures of {MIN_SIDE} pixels a side to {MAX_PIXELS // 10**6} megapixels are taken")
    elif "image" in known.get("outputs", {}):
        old = _set(node, "g:image_link", columns.link(known["outputs"]["image"]), "image_link")
        if options.keep_pictures and old and len(_children(node, "g:additional_image_link")) < MORE_PICTURES:
            node.appendChild(_element(node, "g:additional_image_link", old[0]))
    title, description = _texts(known, options.language)
    for name, text, limit in (("title", title, TITLE), ("description", description, DESCRIPTION)):
        if not text or (_children(node, name, f"g:{name}") and not options.replace_texts):
            continue
        if len(text) > limit:
            told.leave_out(f"a {name} of more than {limit} characters")
            continue
        # What a model wrote goes into the structured field, with its source; the plain one may then be left out.
        for child in _children(node, name, f"g:{name}", f"g:structured_{name}"):
            node.removeChild(child)
        structured = _element(node, f"g:structured_{name}")
        structured.appendChild(_element(node, "g:digital_source_type", "trained_algorithmic_media"))
        structured.appendChild(_element(node, "g:content", text))
        node.appendChild(structured)


def _fill_yml(node: minidom.Element, known: dict[str, Any], columns: Columns, options: FeedOptions, told: Feed) -> None:
    if "image" in known.get("outputs", {}):
        pictures = _children(node, "picture")
        link = columns.link(known["outputs"]["image"])
        kept = [_text_of(picture) for picture in (pictures if options.keep_pictures else pictures[1:])]
        _set(node, "picture", link)
        for old in kept[: MORE_PICTURES - 1]:
            after = _children(node, "picture")[-1].nextSibling
            node.insertBefore(_element(node, "picture", old), after)
    _, description = _texts(known, options.language)
    if description and (options.replace_texts or not _children(node, "description")):
        if len(description) > YML_DESCRIPTION:
            told.leave_out(f"a description of more than {YML_DESCRIPTION} characters")
        else:
            _set(node, "description", description)


FEEDS: dict[
    str, tuple[frozenset[str], Callable[[minidom.Element, dict[str, Any], Columns, FeedOptions, Feed], None]]
] = {
    "google-xml": (frozenset({"item", "entry"}), _fill_google),
    "yml": (frozenset({"offer"}), _fill_yml),
}
