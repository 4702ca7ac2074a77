"""What a manifest can say of one item, beyond its key."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.errors import KeyRefusedError, UsageError
from shared.keys import check_source_key
from shared.wording import causes, place, sentence

Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]
Coordinate = Annotated[float, Field(ge=0, le=100_000)]
Point = tuple[Coordinate, Coordinate, Annotated[int, Field(ge=0, le=1)]]


class ItemFields(BaseModel):
    """One item's row. All fields may be missing; pixels are the photo's own, counted from its upper left corner as it is seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Line | None = None
    """The merchant's own number (SKU)."""
    title: Line | None = None
    category: Line | None = None
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] | None = None
    """The background's prompt, in place of the recipe's."""
    points: tuple[Point, ...] | None = Field(default=None, min_length=1, max_length=64)
    """`[[x, y, 1], …]`: 1 on the product, 0 beside it."""
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    """Left, top, right, bottom of the product."""
    mask: str | None = None
    """Key of the item's mask in the source, in place of the recipe's `mask_key`."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _possible(self) -> ItemFields:
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            msg = "box must be left, top, right, bottom, and hold at least a pixel"
            raise ValueError(msg)
        if self.mask is not None:
            try:
                check_source_key(self.mask)
            except KeyRefusedError as error:
                msg = f"mask: {error}"
                raise ValueError(msg) from None
        return self

    @classmethod
    def check(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row's fields as JSON-able values, without empty ones. Raises `UsageError` that names each wrong field."""
        given = {name: value for name, value in row.items() if value not in (None, "")}
        try:
            return cls.model_validate(given).model_dump(mode="json", exclude_none=True)
        except ValidationError as error:
            wrong = "; ".join(sentence(place(e["loc"]), e) for e in causes(error.errors()))
            raise UsageError(wrong) from None
