"""What is not a message of ours is refused, and refusing is all that happens."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.envelope import check_envelope
from shared.errors import MessageError
from shared.keys import STAGES

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=12,
)
ITEM = {"version": 1, "job": "20261123-142501-3f9a2c", "index": 0, "key": "shoes/1.jpg", "etag": "e"}


def envelope(parts: Any) -> dict[str, Any]:
    return {
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": STAGES[0], "id": "x"},
        "properties": {
            "delivery_tag": "t",
            "delivery_info": {"exchange": "", "routing_key": STAGES[0]},
            "body_encoding": "base64",
        },
        "body": base64.b64encode(json.dumps(parts).encode()).decode(),
    }


def test_the_smallest_message_passes() -> None:
    """The tests below change this one."""
    check_envelope(envelope([[ITEM], {}, {}]), STAGES[0])


@given(JSON)
def test_anything_else_is_refused(data: Any) -> None:
    """With no other exception, which would end the worker and then the next one."""
    with pytest.raises(MessageError):
        check_envelope(data, STAGES[0])
    with pytest.raises(MessageError):
        check_envelope(envelope(data), STAGES[0])
    with pytest.raises(MessageError):
        check_envelope(envelope([[ITEM], {}, {"chain": [data]}]), STAGES[0])


@given(st.sampled_from(["headers", "properties", "body", "content-type"]), JSON)
def test_a_part_of_another_kind_is_refused(part: str, data: Any) -> None:
    """Each part is checked for itself."""
    with pytest.raises(MessageError):
        check_envelope(envelope([[ITEM], {}, {}]) | {part: data}, STAGES[0])
