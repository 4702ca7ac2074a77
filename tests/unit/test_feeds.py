"""What a model wrote, and what a photo is called, is text in a feed."""

from __future__ import annotations

import io
import tracemalloc
from typing import TYPE_CHECKING, Any
from xml.dom import minidom
from xml.etree import ElementTree as ET

import pytest

from producer.export import FeedOptions, join
from producer.export.rows import Columns
from producer.results import Result
from shared.errors import UsageError
from shared.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from producer.export import Feed

COLUMNS = Columns(Recipe(), "https://cdn.example/c")
HOSTILE = "]]><script>alert('1')</script><!-- & \x00\x1b[2J\ud800 \"x\""
SHOWN = "]]><script>alert('1')</script><!-- & [2J \"x\""
FEEDS = {
    "google-xml": (
        "<rss xmlns:g='http://base.google.com/ns/1.0'><item><id>1</id><a>&lt;b&gt;</a><!-- c --></item></rss>",
        "g:content",
        "g:image_link",
    ),
    "yml": ('<shop><offer id="1"><a>&lt;b&gt;</a></offer></shop>', "description", "picture"),
}


@pytest.mark.parametrize("kind", FEEDS)
def test_hostile_text_is_text_in_a_feed(tmp_path: Path, kind: str) -> None:
    """No element comes of it; what XML cannot hold is left out; a key cannot leave its link."""
    text, place, link = FEEDS[kind]
    path = tmp_path / "feed.xml"
    path.write_text(text)
    key = 'a"><b>/../x?y#z.jpg'
    result = Result(
        0, key, "done", fields={"id": "1"}, captions={"en": HOSTILE}, outputs={"image": key}, size=(200, 200)
    )
    made = io.BytesIO()
    told = join(kind, path, iter([result]), COLUMNS, FeedOptions(language="en"), made)
    assert told.joined == 1
    page = minidom.parseString(made.getvalue())  # noqa: S318 - what was just written
    (said,) = page.getElementsByTagName(place)
    assert said.firstChild.data == SHOWN  # type: ignore[union-attr] # a text
    assert not page.getElementsByTagName("script")
    (address,) = page.getElementsByTagName(link)
    assert set(address.firstChild.data) & set('"<>?#') == set()  # type: ignore[union-attr] # as above
    assert page.getElementsByTagName("a")[0].firstChild.data == "<b>"  # type: ignore[union-attr] # as above


def peak(folder: Path, items: int) -> int:
    """Return the bytes that joining a feed of so many items took at most, half of them ours."""
    feed = folder / f"{items}.xml"
    with feed.open("w") as file:
        file.write("<shop>")
        file.writelines(f'<offer id="a-name-of-the-usual-length-{n}"><name>x</name></offer>' for n in range(items))
        file.write("</shop>")
    ids = (f"a-name-of-the-usual-length-{n}" for n in range(0, items, 2))
    results = (Result(n, f"{n}.jpg", "done", fields={"id": name}) for n, name in enumerate(ids))
    tracemalloc.start()
    with (folder / "out.xml").open("wb") as file:
        told = join("yml", feed, results, COLUMNS, FeedOptions(), file)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (told.items, told.joined) == (items, items // 2)
    return most


def test_a_long_feed_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """Neither of what is in the feed nor of what is ours is anything kept."""
    assert peak(tmp_path, 8000) < peak(tmp_path, 1000) + 1_000_000


def test_an_item_that_a_feed_has_twice_is_told(tmp_path: Path) -> None:
    """Both get our picture, and it counts once."""
    feed = tmp_path / "feed.xml"
    feed.write_text('<shop><offer id="1"/><offer id="1"/><offer id="2"/></shop>')
    results = iter([Result(0, "a.jpg", "done", fields={"id": "1"}, outputs={"image": "a/image.jpg"})])
    made = io.BytesIO()
    told = join("yml", feed, results, COLUMNS, FeedOptions(), made)
    assert (told.items, told.joined, told.left_out) == (3, 1, {"named twice in the feed": 1})
    assert made.getvalue().count(b"<picture>") == 2


G = "{http://base.google.com/ns/1.0}"
RSS = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel><item>{}</item></channel></rss>'
OFFER = '<shop><offer id="1">{}</offer></shop>'


def photo(number: int, name: str = "1", side: int = 800, key: str = "") -> Result:
    captions = {"en": f"a shoe {number}", "ru": f"туфля {number}"}
    outputs = {"image": key or f"{number}.jpg/image.jpg"}
    return Result(
        number, f"{number}.jpg", "done", fields={"id": name}, captions=captions, outputs=outputs, size=(side, side)
    )


def joined(folder: Path, kind: str, text: str, photos: list[Result], **options: Any) -> tuple[ET.Element, Feed]:
    path = folder / "feed.xml"
    path.write_text(text)
    made = io.BytesIO()
    told = join(kind, path, iter(photos), COLUMNS, FeedOptions(**options), made)
    return ET.fromstring(made.getvalue()), told  # noqa: S314 - what was just written


def texts(root: ET.Element, name: str) -> list[str]:
    return [found.text or "" for found in root.iter(name)]


def test_every_photo_of_an_item_goes_into_a_google_feed(tmp_path: Path) -> None:
    """The first is the main picture and gives the text; ten more go in, with the merchant's own, and the rest is told."""
    own = "".join(f"<g:additional_image_link>https://m.example/{n}.jpg</g:additional_image_link>" for n in range(3))
    text = RSS.format(f"<g:id>1</g:id><g:image_link>https://m.example/main.jpg</g:image_link>{own}")
    root, told = joined(tmp_path, "google-xml", text, [photo(n) for n in range(9)], keep_pictures=True)
    assert texts(root, f"{G}image_link") == ["https://cdn.example/c/0.jpg/image.jpg"]
    more = texts(root, f"{G}additional_image_link")
    assert more[:3] == [f"https://m.example/{n}.jpg" for n in range(3)]
    assert more[3:] == [f"https://cdn.example/c/{n}.jpg/image.jpg" for n in range(1, 8)]
    assert texts(root, f"{G}content") == ["a shoe 0"]
    assert (told.joined, told.left_out) == (1, {"more than 10 additional pictures": 2})


def test_every_photo_of_an_offer_goes_into_a_yandex_feed(tmp_path: Path) -> None:
    """In their order, then the merchant's further ones, ten in all; the text is Russian unless told."""
    own = "".join(f"<picture>https://m.example/{n}.jpg</picture>" for n in range(4))
    root, told = joined(tmp_path, "yml", OFFER.format(own), [photo(n) for n in range(8)])
    links = [f"https://cdn.example/c/{n}.jpg/image.jpg" for n in range(8)]
    assert texts(root, "picture") == [*links, "https://m.example/1.jpg", "https://m.example/2.jpg"]
    assert texts(root, "description") == ["туфля 0"]
    assert told.left_out == {"more than 10 pictures": 1}


@pytest.mark.parametrize("declared", ["", ' xmlns:x="http://base.google.com/ns/1.0"'])
def test_what_a_google_feed_gets_is_in_googles_namespace(tmp_path: Path, declared: str) -> None:
    """Under the merchant's own prefix, or under one that is declared for it: the feed stays well-formed."""
    name = "x:id" if declared else "id"
    text = f"<rss{declared}><channel><item><{name}>1</{name}></item></channel></rss>"
    root, told = joined(tmp_path, "google-xml", text, [photo(0)])
    assert told.joined == 1
    assert texts(root, f"{G}image_link") == ["https://cdn.example/c/0.jpg/image.jpg"]


@pytest.mark.parametrize(("kind", "text"), [("google-xml", RSS.format("<g:id>1</g:id>")), ("yml", OFFER.format(""))])
def test_a_picture_beyond_the_limits_is_left_out_and_told(tmp_path: Path, kind: str, text: str) -> None:
    """Too small, or at too long an address; another of the item takes its place."""
    root, told = joined(tmp_path, kind, text, [photo(0, side=50), photo(1, key="й" * 400 + ".jpg"), photo(2)])
    links = [*texts(root, f"{G}image_link"), *texts(root, "picture")]
    assert links == ["https://cdn.example/c/2.jpg/image.jpg"]
    assert len(told.left_out) == 2


def test_a_language_that_the_job_did_not_write_is_refused(tmp_path: Path) -> None:
    """Rather than a feed without texts."""
    with pytest.raises(UsageError, match="choose --language en or ru"):
        joined(tmp_path, "yml", OFFER.format(""), [photo(0)], language="xx")


@pytest.mark.parametrize(("kind", "text"), [("google-xml", RSS.format("<g:id>1</g:id>")), ("yml", OFFER.format(""))])
def test_a_feed_that_has_our_pictures_gets_none_of_them_twice(tmp_path: Path, kind: str, text: str) -> None:
    """Yesterday's feed may be today's."""
    photos = [photo(n) for n in range(3)]
    once, _ = joined(tmp_path, kind, text, photos)
    again, _ = joined(tmp_path, kind, ET.tostring(once, encoding="unicode"), photos, keep_pictures=True)
    names = (f"{G}image_link", f"{G}additional_image_link", "picture")
    assert sum(len(texts(once, name)) for name in names) == 3
    assert [texts(again, name) for name in names] == [texts(once, name) for name in names]
