"""What every section of a recipe shares, and the types of its fields."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

HexColor = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$", to_lower=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""Of weights and activations; `auto` is half precision on a GPU and float32 on a CPU."""
Weights = Annotated[str, StringConstraints(pattern=r"^[^\s@]+(@[^\s@]+)?$", max_length=500)]
"""A preset's name (`vitrina models list`), a hub id with its revision (`owner/name@revision`, with `:file` for one file of it), the https address of one file, or a local path."""


class Section(BaseModel):
    """A part of the recipe. Unknown fields are refused; nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """A section that chooses a model."""

    loads: ClassVar[tuple[str, ...]] = ()
    """Fields that decide what is loaded; the others only steer it."""

    item_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a manifest's rows that this choice looks at, and that therefore tell its outputs apart."""

    gpu_batch: ClassVar[int | None] = None
    """Largest batch that makes this choice faster on a GPU; None where it does not run on one."""

    model: str
    """The choice's name; each section narrows it to its own."""

    def identity(self) -> str:
        """Return what tells one loaded model from another: the model's name, with the settings it was loaded with."""
        values: dict[str, Any] = {name: self.model_dump(mode="json")[name] for name in self.loads}
        return f"{self.model} {json.dumps(values, sort_keys=True)}" if values else self.model
