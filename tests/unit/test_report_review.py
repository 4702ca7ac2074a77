"""The report as a reviewer's tool: what to look at, what the merchant calls it, numbers in words, decisions that can be used."""

from __future__ import annotations

import html
import io
import re
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from producer.cli.export import read_keys
from producer.manifest import Manifest
from producer.report import Card, Summary, write_report
from producer.report.facts import evidence_of, facts_of

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = Summary(
    job="autumn",
    source="s3://raw/autumn",
    destination="s3://shop/autumn",
    recipe_text="background:\n  model: studio\n",
    items=3,
    done=1,
    needs_review=2,
    failed=0,
    skipped=0,
    seconds=75.0,
    images_per_second=0.04,
    stage_seconds={"segmentation": 0.4},
    started="2026-11-10T14:03:22+00:00",
)
DOUBT = Card(index=0, key="shoes/1.jpg", outcome="needs_review", reasons=("mask_border",))

RECORD: dict[str, Any] = {
    "reasons": ["mask_border", "caption_uncertain"],
    "recipe": {"segmentation": {"gates": {"max_border": 0.35}}, "caption": {"min_confidence": 0.5}},
    "fields": {"id": "17", "category": "shoes", "mask_etag": "0f"},
    "stages": {
        "segmentation": {
            "measures": {"area": 0.33157, "border": 0.4123, "fragments": 1, "source": "alpha", "refined": True}
        },
        "inpainting": {
            "measures": {
                "width": 1200,
                "height": 800,
                "brightness": 155.2571,
                "preserved_pixels": 39439,
                "preserved_max_difference": 0,
                "seed": 1037219230,
                "growth": None,
            }
        },
        "captioning": {"measures": {"label": None, "confidence": 0.8331298828125, "new_measure": 0.8331298828125}},
    },
    "details": {"en": {"title": "A shoe", "description": "Long.", "attributes": {"material": "suede"}}},
}


def text_of(folder: Path, *cards: Card) -> str:
    """Return what a reader sees of a report."""
    write_report(folder / "report.html", SUMMARY, cards)
    page = (folder / "report.html").read_text(encoding="utf-8")
    body = re.sub(r"<(style|script)>.*?</\1>", "", page[page.index("<body") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_a_doubt_says_where_to_look_and_both_ways_on(tmp_path: Path) -> None:
    """What was measured with its limit, what to look at, what to do if it is wrong, and that nothing is to do if it is right."""
    text = text_of(tmp_path, replace(DOUBT, evidence={"mask_border": "41 % of the border; wanted at most 35 %"}))
    for words in ("Touches the frame", "41 % of the border", "Look whether", "If wrong", "supply a mask", "If right"):
        assert words in text


def test_a_failure_says_what_to_do(tmp_path: Path) -> None:
    """And offers no approval, for there is nothing to approve."""
    text = text_of(tmp_path, replace(DOUBT, outcome="failed", reasons=("unreadable",), detail="cut short"))
    assert "cut short" in text
    assert "To do" in text
    assert "Upload the photo again" in text
    assert "If right" not in text


def test_the_merchants_own_words_are_shown_and_found(tmp_path: Path) -> None:
    """Title and number stand on the card beside the key; the search looks through them and the category."""
    card = replace(DOUBT, fields={"id": "SKU-17", "title": "Чёрный ботинок", "category": "Shoes"})
    text = text_of(tmp_path, card)
    for words in ("SKU-17", "Чёрный ботинок", "shoes/1.jpg"):
        assert words in text
    (search,) = re.findall(r'data-search="([^"]*)"', (tmp_path / "report.html").read_text(encoding="utf-8"))
    for words in ("sku-17", "черный ботинок", "shoes"):
        assert words in html.unescape(search)


def test_details_are_written_for_people() -> None:
    """Names with units and rounded numbers; what is nothing is left out, and a seed is written so that it can be typed."""
    facts = facts_of(RECORD)
    assert facts["Manifest"] == {"Category": "shoes"}
    assert facts["Cut-out"]["Part of the photo"] == "33.2\u00a0%"
    assert facts["Cut-out"]["Mask from"] == "the photo's transparency"
    assert facts["Cut-out"]["Edges refined"] == "yes"
    assert facts["Background"]["Mean brightness"] == "155 of 255"
    assert facts["Background"]["Product's pixels"] == "39,439"
    assert facts["Background"]["Of these changed"] == "not at all"
    assert facts["Background"]["Seed"] == "1037219230"
    assert facts["Background"]["Picture"].startswith("1200")
    assert facts["Texts"] == {"Title, en": "A shoe", "Material, en": "suede"}
    assert facts["Caption"] == {"Confidence": "83.3\u00a0%", "New measure": "0.833"}
    written = str(facts)
    assert not any(raw in written for raw in ("None", "True", "8331298828125", "preserved_", "max_"))


def test_the_number_behind_a_doubt_is_told_with_its_limit() -> None:
    """So that the operator knows which way to move the gate; a doubt without a number has none."""
    evidence = evidence_of({**RECORD, "reasons": ["mask_border", "caption_loop"]})
    assert evidence == {"mask_border": "41.2\u00a0% of the photo's border; wanted at most 35\u00a0%"}
    assert evidence_of({"reasons": ["mask_border"]}) == {}


@pytest.mark.parametrize("value", ["text", [1, 2], {"a": 1}, None, True])
def test_a_record_of_a_later_release_is_shown_as_far_as_it_goes(value: Any) -> None:
    """A measure of another kind than ours is written as it is."""
    record = {
        "reasons": ["mask_border"],
        "recipe": {"segmentation": {"gates": {"max_border": value}}},
        "stages": {
            stage: {"measures": {"area": value, "border": value, "width": value, "height": value, "variants": value}}
            for stage in ("segmentation", "inpainting", "upscaling")
        },
    }
    assert all(isinstance(text, str) for group in facts_of(record).values() for text in group.values())
    assert all(isinstance(text, str) for text in evidence_of(record).values())


def _after_clicks(folder: Path, page: str, clicks: str) -> str:
    """Return the page's elements after a script has run in a browser; the page's policy, which would refuse it, is taken out."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs Chromium")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (folder / "clicked.html").write_text(page.replace("</body>", f"<script>{clicks}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    options += [
        "--window-size=1500,1000",
        "--virtual-time-budget=2000",
        "--dump-dom",
        (folder / "clicked.html").as_uri(),
    ]
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_what_a_reviewer_decides_becomes_two_lists(tmp_path: Path) -> None:
    """One that `--manifest` takes, with what the first manifest said and columns for a better prompt, and one that `--approved` takes; no spreadsheet runs them."""
    fields = {"id": "=7+1", "title": 'Чашка, "синяя"', "points": [[5, 6, 1]], "mask_etag": "0f"}
    cards = [
        replace(DOUBT, key="a,b.jpg", fields=fields),
        replace(DOUBT, index=1, key="\u202ec.jpg"),
        replace(DOUBT, index=2, key="d.jpg"),
    ]
    write_report(tmp_path / "report.html", SUMMARY, cards)
    clicks = """
      URL.createObjectURL = (blob) => { blob.text().then((text) => { document.body.dataset.saved = text; }); return "#"; };
      const press = (query) => document.querySelector(query).click();
      press("#item-0 [data-decide=redo]"); press("#item-1 [data-decide=redo]"); press("#item-2 [data-decide=keep]");
      press("[data-save=redo]");
    """
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    dom = _after_clicks(tmp_path, page, clicks)
    assert re.search(r'<b data-count="keep">1</b>.*<b data-count="redo">2</b>', dom)
    (saved,) = re.findall(r'data-saved="([^"]*)"', dom)
    path = tmp_path / "make-again.csv"
    path.write_text(html.unescape(saved), encoding="utf-8", newline="")
    assert Manifest(path).check() == 2
    rows = [row for _, row in Manifest(path)._table]
    assert [row["key"] for row in rows] == ["a,b.jpg", "\u202ec.jpg"]
    assert ",'=7+1," in html.unescape(saved)
    assert (rows[0]["id"], rows[0]["title"], rows[0]["points"]) == ("=7+1", 'Чашка, "синяя"', "[[5,6,1]]")
    assert {"box", "mask"} <= rows[0].keys()
    assert "mask_etag" not in html.unescape(saved)
    elsewhere = tmp_path / "elsewhere"  # a browser that remembers no decisions
    elsewhere.mkdir()
    dom = _after_clicks(elsewhere, page, clicks.replace("[data-save=redo]", "[data-save=keep]"))
    (saved,) = re.findall(r'data-saved="([^"]*)"', dom)
    approved = tmp_path / "approved.csv"
    approved.write_text(html.unescape(saved), encoding="utf-8", newline="")
    assert read_keys(approved) == {"d.jpg"}


@pytest.mark.parametrize("size", [(90, 280), (280, 90), (200, 200)])
def test_a_result_stands_alone_and_the_recipe_has_the_whole_width(tmp_path: Path, size: tuple[int, int]) -> None:
    """Nothing that looks like transparency is painted beside a picture that has none; what is opened leaves no half of the page blank."""
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, "JPEG")
    write_report(tmp_path / "report.html", SUMMARY, [replace(DOUBT, pictures={"image": file.getvalue()})])
    look = """
      const recipe = document.querySelector(".recipe"), shown = document.querySelector(".hero img");
      recipe.open = true;
      const width = (element) => Math.round(element.getBoundingClientRect().width);
      shown.decode().then(() => {
        const { width: w, height: h } = shown.getBoundingClientRect();
        const painted = getComputedStyle(shown).backgroundImage;
        document.body.dataset.looks = `${(w / h).toFixed(1)} ${painted} ${width(recipe) / width(document.querySelector(".summary"))}`;
      });
    """
    dom = _after_clicks(tmp_path, (tmp_path / "report.html").read_text(encoding="utf-8"), look)
    (looks,) = re.findall(r'data-looks="([^"]*)"', dom)
    assert looks == f"{size[0] / size[1]:.1f} none 1"
