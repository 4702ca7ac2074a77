"""What happens when a model does not load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from shared.errors import ModelMissingError, OutOfMemoryError, UsageError
from shared.models import find
from shared.recipe import NoCaption
from shared.settings import Settings
from workers.captioning.labels import LabelsModel
from workers.devices import device_for
from workers.models import LoadedModels
from workers.testing import InstantModel

if TYPE_CHECKING:
    from shared.keys import StageName
    from shared.recipe import ModelSection


def load(error: Exception) -> None:
    class Greedy(InstantModel):
        def load(self, device: str, threads: int) -> None:
            del device, threads
            raise error

    def make(stage: StageName, section: ModelSection, settings: Settings) -> Any:
        del settings
        return Greedy(stage, section.model)

    LoadedModels("captioning", Settings(), make=make).get(NoCaption(model="none"))


@pytest.mark.parametrize("error", [MemoryError("machine"), torch.OutOfMemoryError("device")])
def test_a_model_that_does_not_fit_is_told_in_one_line(error: Exception) -> None:
    """An expected failure: at the start it ends the worker with status 78, in a job the item is tried again."""
    with pytest.raises(OutOfMemoryError, match=r"model none does not fit the memory of device 'auto': free it"):
        load(error)


def test_a_models_own_fault_is_passed_on() -> None:
    """With its traceback, for those who can mend it."""
    with pytest.raises(ZeroDivisionError):
        load(ZeroDivisionError())


def test_a_device_that_is_not_here_is_told_in_one_line() -> None:
    """A misspelt one, or a GPU too many."""
    with pytest.raises(UsageError, match="no such device 'gpu': set VITRINA_DEVICE"):
        device_for("gpu")
    with pytest.raises(UsageError, match=r"no device 'cuda:99' among the \d+ GPUs"):
        device_for("cuda:99")
    assert device_for("cpu") == torch.device("cpu")


def test_the_starter_captions_take_the_device_of_the_settings_as_other_models_do() -> None:
    """A wrong one is a setting to correct, not a model that does not load."""
    settings = Settings()
    try:
        find("efficientnet-lite0", settings.models_dir)
    except ModelMissingError:
        pytest.skip("the weights are not here: run `vitrina models fetch`")
    with pytest.raises(UsageError, match="set VITRINA_DEVICE"):
        LabelsModel(settings.models_dir, max_pixels=1).load("cuda:99", 1)
