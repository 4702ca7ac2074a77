"""The report: one safe, self-contained file, whatever the catalogue holds."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from PIL import Image

from producer import cli
from producer.report import Card, Summary, write_report
from producer.report.page import LIVE_CARDS, PAGE_CARDS, _duration
from producer.report.reasons import explain
from shared import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMARY = Summary(
    job="autumn",
    source="s3://raw/autumn",
    destination="s3://shop/autumn",
    recipe_text="background:\n  model: studio\n",
    items=3,
    done=1,
    needs_review=1,
    failed=1,
    skipped=0,
    seconds=75.0,
    images_per_second=1234.5,
    stage_seconds={"segmentation": 0.4, "inpainting": 0.1, "captioning": 0.05},
    started="2026-11-10T14:03:22+00:00",
    models={"segmentation": "saliency"},
    version="0.1.0",
)
ROOT = Path(__file__).parents[2]
PACKAGES = {"shared", "producer", "workers"}
OUTCOMES = {"done", "needs_review", "failed"}
SHOWN = {".py", ".html"}
VOID = {"meta", "link", "img", "br", "input", "path", "rect"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)\" autofocus x=`",
    "</template></article><!-- ]]>",
    "{{ summary.job }}{% raw %}&lt;b&gt;",
]


def _picture(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, kind)
    return file.getvalue()


def _card(index: int = 0, **changes: object) -> Card:
    card = Card(
        index=index,
        key=f"shoes/{index}.jpg",
        outcome="done",
        captions={"en": "A blue shoe", "ru": "Синий ботинок"},
        pictures={"source": _picture(), "mask": _picture("PNG"), "cutout": _picture("WEBP"), "image": _picture()},
        timings={"segmentation": 0.41},
    )
    return replace(card, **changes)  # type: ignore[arg-type]


class _Page(HTMLParser):
    """Reads a report as a browser does: elements with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.raw: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"script", "style"}:
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        else:
            self.text += data

    def all(self, tag: str, cls: str = "") -> list[dict[str, str]]:
        found = [attrs for name, attrs in self.elements if name == tag]
        return [attrs for attrs in found if cls in attrs.get("class", "").split()] if cls else found


def _report(folder: Path, *cards: Card, summary: Summary = SUMMARY) -> _Page:
    path = folder / "report.html"
    write_report(path, summary, cards)
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_a_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    """No element loads anything: pictures are data addresses, style and script are inline, and the policy enforces it."""
    page = _report(tmp_path, _card())
    assert all(attrs["src"].startswith("data:image/") for attrs in page.all("img") if "src" in attrs)
    assert all(attrs["href"].startswith("data:") for attrs in page.all("link"))
    assert not any("src" in attrs for attrs in page.all("script"))
    assert {name for name, _ in page.elements}.isdisjoint({"iframe", "object", "embed", "base", "video", "audio"})
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]


def test_the_content_policy_admits_our_style_and_script_and_nothing_else(tmp_path: Path) -> None:
    """The policy names the hashes of exactly the inline style and script, and no element carries inline code or style."""
    page = _report(tmp_path, _card())
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.elements for name in attrs)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_never_run(tmp_path: Path, text: str) -> None:
    """Markup in any field ends up as text: the page has the same elements and attributes as with harmless text."""

    def fill(value: str) -> tuple[Card, Summary]:
        card = _card(
            key=value,
            outcome="failed",
            reasons=(value,),
            detail=value,
            captions={"en": value, value: value},
            facts={value: {value: value}},
            fields={"title": value, "id": value},
            evidence={value: value},
            timings={value: 1.0},
            links={"source": f"https://cdn.test/{value}"},
        )
        named = {value: value}
        words = dict.fromkeys(("job", "source", "destination", "recipe_text", "started", "version"), value)
        return card, replace(SUMMARY, stage_seconds={value: 1.0}, models=named, **words)  # type: ignore[arg-type]

    def shape(page: _Page) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attrs)) for tag, attrs in page.elements]

    card, summary = fill(text)
    hostile = _report(tmp_path, card, summary=summary)
    card, summary = fill("harmless")
    assert shape(hostile) == shape(_report(tmp_path, card, summary=summary))
    assert hostile.text.count(text) >= 8


@pytest.mark.parametrize("char", ["\u202e", "\u2066", "\u2028", "\u2029", "\x00", "\x1b", "\x85", "\ud800", "\ufeff"])
def test_characters_that_cannot_be_seen_are_written_out(tmp_path: Path, char: str) -> None:
    """A name cannot pass for another one through direction overrides, separators, controls or broken Unicode."""
    key = f"a{char}gpj.exe"
    page = _report(tmp_path, _card(key=key, detail=key))
    assert f"a[U+{ord(char):04X}]gpj.exe" in page.text
    assert char not in page.text


@pytest.mark.parametrize(
    "link",
    ["javascript:alert(1)", " javascript:alert(1)", "java\nscript:x", "data:text/html,x", "s3://b/k", "http://[x"],
)
def test_only_links_that_open_a_file_are_links(tmp_path: Path, link: str) -> None:
    """Any address that is not http(s), a file or relative is shown as text."""
    page = _report(tmp_path, _card(links={"image": link}))
    assert [attrs["href"] for attrs in page.all("a") if attrs.get("href", "#")[0] != "#"] == []


@pytest.mark.parametrize("link", ["https://cdn.test/a b.jpg", "../photos/1.jpg", "file:///data/1.jpg"])
def test_a_link_opens_the_full_file_without_leaking_the_report(tmp_path: Path, link: str) -> None:
    """The thumbnail links to the file, in a new tab, without a referrer or an opener."""
    page = _report(tmp_path, _card(links={"image": link}))
    (pic,) = page.all("a", "pic")
    assert pic["href"] == link
    assert pic["rel"] == "noopener noreferrer"


def test_every_picture_has_words(tmp_path: Path) -> None:
    """Each thumbnail has an alternative text that says what it shows, variants included."""
    pictures = {"source": _picture(), "mask": _picture("PNG"), "image": [_picture(), _picture("PNG"), b"junk"]}
    page = _report(tmp_path, _card(pictures=pictures))
    alts = [attrs["alt"] for attrs in page.all("img") if "src" in attrs]
    assert alts == ["Result: A blue shoe", "Variant 2: A blue shoe", "Photo: shoes/0.jpg", "Mask: shoes/0.jpg"]
    assert page.text.count("Not made") == 1


def test_captions_tell_their_language(tmp_path: Path) -> None:
    """A screen reader reads the Russian caption in Russian."""
    page = _report(tmp_path, _card())
    assert [attrs["lang"] for attrs in page.all("dd") if "lang" in attrs] == ["en", "ru"]
    assert "Синий ботинок" in page.text


def test_a_reason_says_what_to_do(tmp_path: Path) -> None:
    """A known reason is a sentence with a next step; a new word is shown as it is."""
    page = _report(tmp_path, _card(outcome="failed", reasons=("no_product", "brand_new"), pictures={}, captions={}))
    assert "supply a mask" in page.text
    assert "brand_new" in page.text


def test_every_failure_has_an_explanation() -> None:
    """No class of our exception tree is left unexplained: whatever a worker meets may be recorded for an item."""

    def tree(cls: type[errors.VitrinaError]) -> Iterator[type[errors.VitrinaError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from tree(child)

    ours = {cls.reason for cls in tree(errors.VitrinaError) if cls.__module__.partition(".")[0] in PACKAGES}
    assert {reason for reason in ours if not (explain(reason).advice and explain(reason).remedy)} == set()


def test_every_gate_has_an_explanation() -> None:
    """A word that a stage gives as a reason to look, in any module that deals in reasons, has its sentence."""
    word = re.compile(r"(mask|choice|picture|product|caption|translation)_[a-z_]+")
    words = set()
    for file in (ROOT / "workers").glob("*/**/*.py"):  # a folder for each stage
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {getattr(node, field, None) for node in nodes for field in ("id", "name", "arg")}
        if any(isinstance(name, str) and name.endswith("reasons") for name in names):
            values = (node.value for node in nodes if isinstance(node, ast.Constant))
            words |= {value for value in values if isinstance(value, str) and word.fullmatch(value)}
    assert words > {"mask_small", "picture_flat", "product_changed", "caption_uncertain"}
    assert {reason for reason in words if not (explain(reason).advice and explain(reason).remedy)} == set()


def test_no_text_sends_the_reader_to_a_command_that_is_not_there() -> None:
    """Every command that a message, a page or the README names is one that the command line has."""
    files = [path for path in (ROOT / "producer").rglob("*.*") if path.suffix in SHOWN]
    texts = [
        path.read_text(encoding="utf-8")
        for path in [*files, *(ROOT / "shared").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    ]
    named = {name for text in texts for name in re.findall(r"(?:`|bin/)vitrina ([a-z]+)", text)}
    assert named > {"up", "doctor", "models"}
    assert named - set(typer.main.get_command(cli.app).commands) == set()  # type: ignore[attr-defined] # a group


def test_search_folds_case_and_yo(tmp_path: Path) -> None:
    """«ЗЕЛЁНАЯ» is found by «зеленая»; keys, details and reasons are searched as well."""
    page = _report(tmp_path, _card(captions={"ru": "ЗЕЛЁНАЯ шапка"}, reasons=("mask_border",), detail="Cut Short"))
    (card,) = page.all("article")
    assert all(
        word in card["data-search"] for word in ("зеленая шапка", "shoes/0.jpg", "mask_border", "touches", "cut short")
    )


def test_the_order_is_the_callers(tmp_path: Path) -> None:
    """Cards stand in the order given, so failures given first are read first."""
    cards = [_card(7, outcome="failed"), _card(3, outcome="needs_review"), _card(1)]
    page = _report(tmp_path, *cards)
    assert [attrs["id"] for attrs in page.all("article")] == ["item-7", "item-3", "item-1"]


def test_the_headline_counts_each_item_once(tmp_path: Path) -> None:
    """What is ready, in doubt, failed and not finished makes up the whole, in words and in the bar."""
    page = _report(tmp_path, _card(), summary=replace(SUMMARY, items=10, done=4, needs_review=3, failed=1))
    assert "4 of 10 items ready for the catalogue" in page.text
    assert "2 not finished yet" in page.text
    widths = {attrs["class"]: float(attrs["width"]) for attrs in page.all("rect") if attrs.get("class") in OUTCOMES}
    assert widths == {"done": 40, "needs_review": 30, "failed": 10}


def test_skipped_is_shown_only_when_there_are_some(tmp_path: Path) -> None:
    """The tile for items that were already there appears with the first of them."""
    assert "Already there" not in _report(tmp_path, _card()).text
    assert "Already there" in _report(tmp_path, _card(), summary=replace(SUMMARY, skipped=1)).text


def test_an_empty_job_has_a_report(tmp_path: Path) -> None:
    """No items and no timings still make a whole page."""
    summary = replace(SUMMARY, items=0, done=0, needs_review=0, failed=0, stage_seconds={}, images_per_second=0.0)
    assert "0 of 0 items ready" in _report(tmp_path, summary=summary).text


def test_cards_past_the_first_pages_are_inert(tmp_path: Path) -> None:
    """Only the first cards are drawn; later ones lie in templates, and a reader without JavaScript is told so."""
    page = _report(tmp_path, *(_card(i, pictures={}) for i in range(LIVE_CARDS + 20)))
    assert len(page.all("article")) == LIVE_CARDS + 20
    assert len(page.all("template", "later")) == 20
    assert len(page.all("noscript")) == 1
    assert _report(tmp_path, *(_card(i, pictures={}) for i in range(LIVE_CARDS))).all("noscript") == []


def test_memory_does_not_grow_with_the_catalogue(tmp_path: Path) -> None:
    """40 MB of thumbnails pass through within 8 MB."""
    data = _picture() + os.urandom(20_000)
    tracemalloc.start()
    try:
        write_report(tmp_path / "r.html", SUMMARY, (_card(i, pictures={"image": data}) for i in range(1500)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "r.html").stat().st_size > 40_000_000
    assert peak < 8_000_000


def test_an_older_report_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """When the cards break off, the old file is untouched and no partial file is left."""
    path = tmp_path / "report.html"
    path.write_text("old")

    def cards() -> Iterator[Card]:
        yield _card()
        raise errors.StorageError("gone")

    with pytest.raises(errors.StorageError):
        write_report(path, SUMMARY, cards())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    """The message names the path and the next step."""
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UsageError, match=r"cannot write the report to .*choose another place"):
        write_report(tmp_path / "file" / "report.html", SUMMARY, [])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0484, "48 ms"),
        (0.9996, "1.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.97, "1 min 00 s"),
        (75, "1 min 15 s"),
        (7262, "2 h 01 min"),
    ],
)
def test_durations_are_written_as_people_say_them(seconds: float, words: str) -> None:
    """The unit fits the length."""
    assert _duration(seconds) == words


def test_a_browser_pages_through_a_large_report(tmp_path: Path) -> None:
    """In a real browser the policy lets our script run, and a link to a late card opens its page, with its picture drawn in."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs Chromium")
    path = tmp_path / "report.html"
    write_report(path, replace(SUMMARY, items=640), (_card(i) for i in range(640)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [browser, *options, f"{path.as_uri()}#item-620"], capture_output=True, text=True, timeout=60, check=True
    )
    shown = re.findall(r'id="item-(\d+)"', done.stdout)
    assert [int(index) for index in shown] == list(range(600, 640))
    assert "640 of 640 items" in done.stdout
    assert PAGE_CARDS == 100
