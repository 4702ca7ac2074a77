"""The README: what it says of settings, gates and files is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from producer.report.reasons import explain
from shared.recipe import DiffusionBackground, Recipe, SamSegmentation
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "MODELS.md", *(ROOT / "docs").glob("*.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """Return the cells of the table whose head begins with `first`."""
    table = README[README.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def values(cell: str) -> list[str]:
    return [value.strip("` ") for value in cell.split(",")]


def test_every_setting_it_names_is_one() -> None:
    """With the default it states."""
    known = {f"VITRINA_{name.upper()}": field for name, field in Settings.model_fields.items()}
    assert set(re.findall(r"VITRINA_[A-Z0-9_]*[A-Z0-9]", README)) <= known.keys()
    stated = {name: text for row in rows("variable") for name, text in zip(names(row[0]), values(row[1]), strict=False)}
    assert len(stated) > 10
    plain = Settings(_env_file=None)  # type: ignore[call-arg] # pydantic-settings' own argument
    for name, text in stated.items():
        default = getattr(plain, name.removeprefix("VITRINA_").lower())
        if name == "VITRINA_BROKER":
            default = default.get_secret_value()
        elif name == "VITRINA_MODELS_DIR":
            text = str(Path(text).expanduser())  # noqa: PLW2901 - written short
        elif default is None:
            continue  # the table says what stands in its place
        elif isinstance(default, float):
            default = int(default)
        assert text == str(default), name


def test_the_gates_have_the_defaults_it_states() -> None:
    """In the units it states."""
    recipe = Recipe()
    places: dict[str, Any] = {
        "segmentation.gates": recipe.segmentation.gates,
        "segmentation": SamSegmentation(model="sam"),
        "picture.gates": recipe.picture.gates,
        "background": DiffusionBackground(model="diffusion"),
        "caption": recipe.caption,
    }
    stated = 0
    for gate, default, _, reasons in rows("gate"):
        assert all(explain(reason).remedy for reason in names(reasons))
        place = names(gate)[0].rpartition(".")[0]
        for name, value in zip(names(gate), values(default), strict=True):
            assert float(value) == getattr(places[place], name.rpartition(".")[2]), name
            stated += 1
    gates = [*type(recipe.segmentation.gates).model_fields, *type(recipe.picture.gates).model_fields]
    assert stated == len(gates) + 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, or to a heading of the page."""
    text = page.read_text(encoding="utf-8")
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif "://" not in link:
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_it_stays_short() -> None:
    """What needs more room has a page of its own."""
    assert len(README.splitlines()) <= 240
