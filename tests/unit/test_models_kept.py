"""A worker keeps the models it used last, and lets the others go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from shared.recipe import Blip2Caption, LabelsCaption, NoCaption
from shared.settings import Settings
from workers.batcher import BatcherClosedError
from workers.runner import Runner
from workers.testing import InstantModel

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.recipe import ModelSection


def test_the_model_used_longest_ago_makes_room_for_a_new_one() -> None:
    """Two recipes with weights of their own are two models; steering settings are not."""
    loaded: list[str] = []

    def make(stage: StageName, section: ModelSection, settings: Settings) -> Any:
        del settings
        loaded.append(section.identity())
        return InstantModel(stage, section.model)

    runner = Runner("captioning", Settings(models_kept=2), make=make)
    labels, none = LabelsCaption(), NoCaption(model="none")
    runner.model(labels)
    oldest = runner.model(none)[1]
    assert runner.model(LabelsCaption(min_confidence=0.9)) is runner.model(labels)
    runner.model(Blip2Caption(model="blip2", weights="blip2-opt-2.7b"))
    with pytest.raises(BatcherClosedError):
        oldest.submit(b"")
    runner.model(Blip2Caption(model="blip2", weights="blip2-flan-t5-xl"))
    assert len(loaded) == len(set(loaded)) == 4
    runner.close()
