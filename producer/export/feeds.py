"""The merchant's own product feed with our pictures and texts in it, item by item."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any
from xml.dom import minidom, pulldom
from xml.parsers import expat
from xml.sax import SAXException, saxutils

from producer.export.formats import FEEDS, Feed
from producer.export.index import Index
from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from producer.export.formats import FeedFormat, FeedOptions
    from producer.export.rows import Columns
    from producer.results import Result

_BLOCK = 1 << 16


def join(
    kind: str, feed: Path, results: Iterator[Result], columns: Columns, options: FeedOptions, file: IO[bytes]
) -> Feed:
    """Copy the merchant's feed with our pictures and texts in the items that we know. Raises `UsageError` for what is no such feed."""
    told = Feed()
    made = FEEDS[kind](columns, options, told)
    with Index(results) as index:

        def each(node: minidom.Element) -> None:
            told.items += 1
            name = made.name(node)
            if name is None:
                raise UsageError(f"{feed}: item {told.items} has no {options.on}: choose another with --on")
            photos, again = index.take(name)
            if again:
                told.leave_out("named twice in the feed")
            if photos:
                made.fill(node, photos)
                told.joined += not again

        _copy(feed, made, each, file)
        if not told.items:
            raise UsageError(f"{feed} has no {' or '.join(sorted(made.elements))}: is it a feed of {kind}?")
        told.leave_out("not in the feed", index.left())
    return told


def _copy(feed: Path, made: FeedFormat, each: Callable[[minidom.Element], None], file: IO[bytes]) -> None:
    """Write a feed as it is, but for its items, which `each` may change; one item in memory at a time."""
    begun = False
    try:
        with feed.open("rb") as source:
            _refuse_entities(feed, source)
            source.seek(0)
            file.write(b'<?xml version="1.0" encoding="UTF-8"?>\n')
            events: Any = pulldom.parse(source)  # noqa: S319 - no entities, as was seen; expat fetches nothing
            for event, node in events:
                if event == pulldom.START_ELEMENT and not begun:
                    begun = True
                    for name, value in made.root(dict(node.attributes.items())).items():
                        node.setAttribute(name, value)
                if event == pulldom.START_ELEMENT and node.tagName in made.elements:
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
