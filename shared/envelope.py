"""What Celery wraps around an item on its way through a queue, checked before anything of it is used.

Whoever can write to the broker can write anything: a message that is not exactly what a producer or worker of ours sends is refused, and
leaves the queue, or it would come back for ever.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.errors import MessageError
from shared.keys import STAGES, StageName
from shared.messages import Item
from shared.wording import place, sentence

MAX_BYTES = 65_536
"""Largest message. One with the longest key in other letters than ASCII, three times in it and escaped, has 17 thousand."""

LATEST = timedelta(hours=1)
"""Ahead of now. A worker holds what waits, and takes no more when it holds a thousand; the hour is for clocks that differ."""

_Name = Annotated[str, StringConstraints(max_length=255)]


class _Part(BaseModel):
    # Other versions of Celery, and traces, add headers of their own, which nothing here reads.
    model_config = ConfigDict(extra="ignore", strict=True)


class _Headers(_Part):
    """Celery's headers (its message protocol 2), as far as its worker reads them."""

    task: StageName
    id: _Name
    shadow: _Name | None = None
    eta: Annotated[datetime | None, Field(strict=False)] = None
    expires: Annotated[datetime | None, Field(strict=False)] = None
    group: _Name | None = None
    group_index: int | None = None
    retries: int | None = Field(default=None, ge=0, le=10_000)
    timelimit: list[float | None] | None = Field(default=None, min_length=2, max_length=2)
    root_id: _Name | None = None
    parent_id: _Name | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    published: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Our transport's: seconds since 1970."""
    stamped_headers: list[Any] | None = Field(default=None, max_length=0)
    stamps: dict[str, Any] | None = Field(default=None, max_length=0)
    compression: None = None
    """Small messages need none, and what unpacks may be of any size."""


class _DeliveryInfo(_Part):
    exchange: str
    routing_key: str


class _Properties(_Part):
    delivery_tag: _Name
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    correlation_id: _Name | None = None
    reply_to: _Name | None = None
    priority: int | None = None


class _Envelope(_Part):
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties
    body: str


class _Embed(_Part):
    callbacks: None = None
    errbacks: None = None
    chord: None = None
    chain: list[dict[str, Any]] | None = Field(default=None, max_length=len(STAGES))


def check_envelope(message: object, queue: str) -> None:
    """Check a message that came off a stage's queue. Raises `MessageError` with the first thing that is wrong with it."""
    try:
        envelope = _Envelope.model_validate(message)
        stage = queue.partition(".")[0]
        if envelope.headers.task != stage:
            raise MessageError(f"a task of {envelope.headers.task} in the queue {queue}")
        if envelope.headers.eta and envelope.headers.eta.astimezone(UTC) > datetime.now(UTC) + LATEST:
            raise MessageError(f"it is to wait until {envelope.headers.eta}, and a retry waits for seconds")
        args, kwargs, embed = json.loads(base64.b64decode(envelope.body, validate=True))
        steps = _Embed.model_validate(embed).chain or []
    except ValidationError as error:
        first = error.errors()[0]
        raise MessageError(sentence(place(first["loc"]), first)) from None
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise MessageError("its body is not what a producer writes") from None
    if any(step.get("task") not in STAGES for step in steps):
        raise MessageError(f"a step that follows must be one of {', '.join(STAGES)}")
    if not isinstance(args, list) or len(args) != 1 or kwargs != {}:
        raise MessageError("a task takes an item and nothing else")
    Item.from_wire(args[0])
    if any(step.get("args") != args or step.get("kwargs") != {} for step in steps):
        raise MessageError("a step that follows takes the same item and nothing else")
