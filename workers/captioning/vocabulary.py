"""What the network's classes are called in both languages, and which of them are the same kind of thing."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

Number = Literal["s", "p", "u"]
Gender = Literal["m", "f", "n", "p"]


@dataclass(frozen=True, slots=True)
class Label:
    """A thing's name with the grammar that a sentence needs."""

    en: str
    en_number: Number
    """Singular (takes an article), plural or uncountable."""
    ru: str
    ru_gender: Gender
    """Masculine, feminine, neuter or plural: what a colour agrees with."""
    coloured: bool
    """Whether naming a colour says anything (a red mug; not a red fire salamander)."""
    goods: bool = True
    """False for places, people and pages: a photo of a product is never of these."""
    family: str = ""
    """The English name of a wider word in `families`, or empty."""


@cache
def labels() -> tuple[Label, ...]:
    """Return ImageNet's 1,000 classes in the network's order."""
    return tuple(_label(row) for row in _rows("labels.csv"))


@cache
def families() -> Mapping[str, Label]:
    """Return the wider words by English name."""
    return {row["en"]: _label(row) for row in _rows("families.csv")}


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _label(row: Mapping[str, str]) -> Label:
    return Label(
        en=row["en"],
        en_number=cast("Number", row["en_number"]),
        ru=row["ru"],
        ru_gender=cast("Gender", row["ru_gender"]),
        coloured=row["coloured"] == "1",
        goods=row.get("goods", "1") == "1",
        family=row.get("family", ""),
    )
