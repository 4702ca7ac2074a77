"""What a model wrote, and what a photo is called, is text in a feed."""

from __future__ import annotations

import io
import tracemalloc
from typing import TYPE_CHECKING
from xml.dom import minidom

import pytest

from producer.export import FeedOptions, join
from producer.export.rows import Columns
from producer.results import Result
from shared.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

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
    told = join(kind, path, iter([result]), Columns(Recipe(), "https://cdn.example/c"), FeedOptions(), made)
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
        told = join("yml", feed, results, Columns(Recipe(), "https://cdn.example/c"), FeedOptions(), file)
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
    told = join("yml", feed, results, Columns(Recipe(), "https://cdn.example/c"), FeedOptions(), made)
    assert (told.items, told.joined, told.left_out) == (3, 1, {"named twice in the feed": 1})
    assert made.getvalue().count(b"<picture>") == 2
