"""What goes into an item of a merchant's feed: Google Merchant's XML and Yandex's YML, within the limits that both set."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from xml.dom import minidom

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from producer.export.index import Known
    from producer.export.rows import Columns

MAX_PIXELS = 64_000_000
"""Google Merchant's limit on a picture."""
MIN_SIDE, LATER_SIDE, LATER = 100, 500, date(2027, 1, 31)
"""Pixels a side of a picture at least; Google Merchant asks for more from that day on."""
NAMESPACE = "http://base.google.com/ns/1.0"
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What goes into the feed."""

    on: str = "id"
    """The element of the feed, or for YML the offer's `id`, that holds what our items know as `id`."""
    language: str | None = None
    """Of our texts; the format's own where it is not said."""
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

    def leave_out(self, why: str, number: int = 1) -> None:
        """Count what could not go in."""
        if number > 0:
            self.left_out[why] = self.left_out.get(why, 0) + number


class FeedFormat(ABC):
    """One kind of feed. An item gets the picture of its first photo as the main one, those of its others as additional ones, and the first's texts."""

    elements: ClassVar[frozenset[str]]
    """What items are called."""
    language: ClassVar[str]
    """Of the texts, where the job wrote it and nobody says otherwise."""
    link_length: ClassVar[int]
    """Characters of a picture's address at most."""

    def __init__(self, columns: Columns, options: FeedOptions, told: Feed) -> None:
        """Choose the language of the texts. Raises `UsageError` for one that the job did not write."""
        self._columns = columns
        self._options = options
        self._told = told
        wrote = columns.languages
        if options.language and options.language not in wrote:
            raise UsageError(
                f"the job wrote no texts in {options.language!r}: choose --language {' or '.join(wrote) or 'not at all'}"
            )
        self._language = options.language or (self.language if self.language in wrote else next(iter(wrote), ""))

    def root(self, attributes: Mapping[str, str]) -> dict[str, str]:
        """Look at the feed's first element, and return what it must have besides."""
        del attributes
        return {}

    @abstractmethod
    def name(self, node: minidom.Element) -> str | None:
        """Return the id of an item."""

    @abstractmethod
    def fill(self, node: minidom.Element, photos: list[Known]) -> None:
        """Put our pictures and texts into an item."""

    def _links(self, photos: Iterable[Known]) -> list[str]:
        """Return the addresses of the pictures that may go in."""
        links = []
        for photo in photos:
            if "image" not in photo.get("outputs", {}):
                continue
            link = self._columns.link(photo["outputs"]["image"])
            if len(link) > self.link_length:
                self._told.leave_out(f"an address of more than {self.link_length} characters")
            elif self._fits(photo):
                links.append(link)
        return links

    def _fits(self, photo: Known) -> bool:
        least = self._least()
        width, height = photo.get("size") or (least, least)  # what is not known is not judged
        fits = min(width, height) >= least and width * height <= MAX_PIXELS
        if not fits:
            self._told.leave_out(f"pictures of {least} pixels a side to {MAX_PIXELS // 10**6} megapixels are taken")
        return fits

    def _least(self) -> int:
        return MIN_SIDE

    def _texts(self, photo: Known) -> tuple[str, str]:
        """Return the title, where a model wrote one, and the description."""
        details = photo.get("details", {}).get(self._language, {})
        caption = photo.get("captions", {}).get(self._language, "")
        return str(details.get("title", "")), str(details.get("description", "") or caption)

    def _too_long(self, name: str, text: str, limit: int) -> bool:
        if len(text) <= limit:
            return False
        self._told.leave_out(f"a {name} of more than {limit} characters")
        return True


class GoogleFeed(FeedFormat):
    """Google Merchant's RSS or Atom."""

    elements = frozenset({"item", "entry"})
    language = "en"
    link_length = 2000
    MORE_PICTURES = 10
    LENGTHS: ClassVar[dict[str, int]] = {"title": 150, "description": 5000}

    def __init__(self, columns: Columns, options: FeedOptions, told: Feed) -> None:
        super().__init__(columns, options, told)
        self._prefix = "g"

    def root(self, attributes: Mapping[str, str]) -> dict[str, str]:
        """Take the merchant's own prefix of Google's namespace, or declare one."""
        bound = [
            name.partition(":")[2]
            for name, value in attributes.items()
            if value == NAMESPACE and name.startswith("xmlns:")
        ]
        self._prefix = bound[0] if bound else "g"
        return {} if bound else {"xmlns:g": NAMESPACE}

    def name(self, node: minidom.Element) -> str | None:
        """Return the text of the element that is joined on."""
        found = children(node, self._options.on, self._named(self._options.on))
        return (text_of(found[0]).strip() or None) if found else None

    def fill(self, node: minidom.Element, photos: list[Known]) -> None:
        """Fill `image_link`, `additional_image_link` and the structured title and description."""
        if links := self._links(photos):
            old = put(node, self._named("image_link"), links[0], "image_link")
            more = [*links[1:], *(old[:1] if self._options.keep_pictures else ())]
            additional = self._named("additional_image_link")
            there = [text_of(child).strip() for child in children(node, additional, "additional_image_link")]
            more = [link for link in dict.fromkeys(more) if link not in {links[0], *there}]
            room = max(0, self.MORE_PICTURES - len(there))
            for link in more[:room]:
                node.appendChild(element(node, additional, link))
            self._told.leave_out(f"more than {self.MORE_PICTURES} additional pictures", len(more) - room)
        for name, text in zip(self.LENGTHS, self._texts(photos[0]), strict=True):
            there = children(node, name, self._named(name))
            if (
                text
                and (self._options.replace_texts or not there)
                and not self._too_long(name, text, self.LENGTHS[name])
            ):
                self._structured(node, name, text)

    def _structured(self, node: minidom.Element, name: str, text: str) -> None:
        # What a model wrote goes into the structured field, with its source; the plain one may then be left out.
        structured = self._named(f"structured_{name}")
        for child in children(node, name, self._named(name), structured):
            node.removeChild(child)
        made = element(node, structured)
        made.appendChild(element(node, self._named("digital_source_type"), "trained_algorithmic_media"))
        made.appendChild(element(node, self._named("content"), text))
        node.appendChild(made)

    def _named(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _least(self) -> int:
        return LATER_SIDE if datetime.now(UTC).date() >= LATER else MIN_SIDE


class YandexFeed(FeedFormat):
    """Yandex Market's YML."""

    elements = frozenset({"offer"})
    language = "ru"
    link_length = 512
    PICTURES = 10
    DESCRIPTION = 3000

    def name(self, node: minidom.Element) -> str | None:
        """Return the offer's `id`, or the text of the element that is joined on."""
        if self._options.on == "id":
            return node.getAttribute("id") or None
        found = children(node, self._options.on)
        return (text_of(found[0]).strip() or None) if found else None

    def fill(self, node: minidom.Element, photos: list[Known]) -> None:
        """Fill `picture` and `description`."""
        if links := self._links(photos):
            old = [text_of(picture).strip() for picture in children(node, "picture")]
            pictures = list(dict.fromkeys([*links, *(old if self._options.keep_pictures else old[1:])]))
            put(node, "picture", pictures[0])
            for link in pictures[1 : self.PICTURES]:
                node.insertBefore(element(node, "picture", link), children(node, "picture")[-1].nextSibling)
            self._told.leave_out(f"more than {self.PICTURES} pictures", len(pictures) - self.PICTURES)
        _, description = self._texts(photos[0])
        wanted = description and (self._options.replace_texts or not children(node, "description"))
        if wanted and not self._too_long("description", description, self.DESCRIPTION):
            put(node, "description", description)


def children(node: minidom.Element, *names: str) -> list[Any]:
    """Return the elements of an item that have one of these names."""
    return [child for child in node.childNodes if getattr(child, "tagName", None) in names]


def text_of(node: Any) -> str:
    """Return the text of an element."""
    return "".join(
        child.data for child in node.childNodes if child.nodeType in {child.TEXT_NODE, child.CDATA_SECTION_NODE}
    )


def element(node: minidom.Element, name: str, text: str = "") -> Any:
    """Make an element for an item; what XML cannot hold is left out of its text."""
    document = node.ownerDocument or minidom.Document()
    made = document.createElement(name)
    if text:
        made.appendChild(document.createTextNode(_FORBIDDEN.sub("", text)))
    return made


def put(node: minidom.Element, name: str, text: str, *others: str) -> list[str]:
    """Give an item one element of a name, in the place of those it has of that or other names; return what these said."""
    old = children(node, name, *others)
    made = element(node, name, text)
    if old:
        node.insertBefore(made, old[0])
    else:
        node.appendChild(made)
    for child in old:
        node.removeChild(child)
    return [text_of(child).strip() for child in old]


FEEDS: dict[str, type[FeedFormat]] = {"google-xml": GoogleFeed, "yml": YandexFeed}
