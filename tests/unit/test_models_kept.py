"""A worker keeps the models it used last, and lets the others go."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from shared.errors import ModelCorruptError, OutOfMemoryError, StageFailedError
from shared.recipe import Blip2Caption, LabelsCaption, NoCaption
from shared.settings import Settings
from workers import models
from workers.batcher import HandedBackError
from workers.models import LoadedModels
from workers.testing import InstantModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.keys import StageName
    from shared.recipe import ModelSection

GOOD, OTHER = LabelsCaption(), NoCaption(model="none")
BAD = Blip2Caption(model="blip2", weights="blip2-opt-2.7b")


class Shelf:
    """Makes models and remembers which were loaded and which still exist; those of `BAD` do not load."""

    def __init__(self, error: Callable[[], Exception] = lambda: ModelCorruptError("cut short")) -> None:
        self.error = error
        self.loaded: list[str] = []
        self.made: list[weakref.ref[InstantModel]] = []

    def __call__(self, stage: StageName, section: ModelSection, settings: Settings) -> Any:
        del settings
        model = InstantModel(stage, section.model)
        self.loaded.append(section.identity())
        self.made.append(weakref.ref(model))
        if section.identity() == BAD.identity():
            model.load = self._fail  # type: ignore[method-assign] # a model that does not load
        return model

    def _fail(self, *_: object) -> None:
        raise self.error()

    def alive(self) -> list[bool]:
        return [model() is not None for model in self.made]


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[LoadedModels, Shelf]]]:
    """Make a worker's models, and close them."""
    made: list[LoadedModels] = []

    def one(kept: int, **options: Any) -> tuple[LoadedModels, Shelf]:
        shelf = Shelf(**options)
        made.append(LoadedModels("captioning", Settings(models_kept=kept), make=shelf))
        return made[-1], shelf

    yield one
    for loaded in made:
        loaded.close()


def test_the_model_used_longest_ago_makes_room_for_a_new_one(make: Callable[..., tuple[LoadedModels, Shelf]]) -> None:
    """Two recipes with weights of their own are two models; steering settings are not."""
    loaded, shelf = make(2, error=RuntimeError)
    loaded.get(GOOD)
    loaded.get(OTHER)
    assert loaded.get(LabelsCaption(min_confidence=0.9)) is loaded.get(GOOD)
    loaded.get(Blip2Caption(model="blip2", weights="blip2-flan-t5-xl"))
    assert len(shelf.loaded) == len(set(shelf.loaded)) == 3
    assert shelf.alive() == [True, False, True]


def test_a_model_leaves_its_memory_before_another_takes_it(make: Callable[..., tuple[LoadedModels, Shelf]]) -> None:
    """A thread that is preparing an item with it holds it for a moment longer."""
    loaded, shelf = make(1)
    held: list[Any] = [loaded.get(GOOD)]
    let_go = threading.Timer(0.3, held.clear)
    let_go.start()
    alive: list[list[bool]] = []
    load = InstantModel.load
    shelf_alive = shelf.alive

    class Watched(InstantModel):
        def load(self, device: str, threads: int) -> None:
            alive.append(shelf_alive())
            load(self, device, threads)

    loaded._make = lambda stage, section, _: Watched(stage, section.model)
    loaded.get(OTHER)
    let_go.join()
    assert alive == [[False]]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: ModelCorruptError("cut short"), ModelCorruptError),
        (lambda: MemoryError("no room"), OutOfMemoryError),
        (lambda: KeyError("weights"), StageFailedError),
    ],
    ids=["corrupt", "too large", "a fault of a library"],
)
def test_a_model_that_does_not_load_costs_other_jobs_little(
    make: Callable[..., tuple[LoadedModels, Shelf]],
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], Exception],
    told: type[Exception],
) -> None:
    """However many photos ask for it: it is tried once a while, and in between nothing makes room for it."""
    loaded, shelf = make(1, error=error)
    loaded.get(GOOD)
    with pytest.raises((told, KeyError)):
        loaded.get(BAD)
    for _ in range(5):
        loaded.get(GOOD)
        with pytest.raises(told):
            loaded.get(BAD)
    assert shelf.loaded == [GOOD.identity(), BAD.identity(), GOOD.identity()]
    monkeypatch.setattr(models, "LOAD_AGAIN", 0.0)
    monkeypatch.setattr(models, "LOAD_AGAIN_SOON", 0.0)
    loaded._refused.clear()
    with pytest.raises((told, KeyError)):
        loaded.get(BAD)
    assert shelf.loaded[-1] == BAD.identity()


def test_a_worker_that_shuts_down_loads_nothing() -> None:
    """Loading takes minutes; its supervisor would not wait."""
    shelf = Shelf()
    loaded = LoadedModels("captioning", Settings(), make=shelf, stopping=lambda: True)
    with pytest.raises(HandedBackError):
        loaded.get(GOOD)
    assert not shelf.loaded
    loaded.close()


@pytest.mark.parametrize(
    ("asked", "own", "taken"), [(None, None, 8), (None, 64, 64), (32, None, 32), (32, 64, 32), (32, 1, 1)]
)
def test_a_batch_is_as_large_as_model_and_operator_let_it(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, own: int | None, taken: int
) -> None:
    """The model knows what fills its device; the operator can only lower it."""
    monkeypatch.setattr(InstantModel, "max_batch", own)
    loaded = LoadedModels("captioning", Settings(max_batch=asked), make=Shelf())
    _, batcher = loaded.get(GOOD)
    assert batcher._max_batch == taken
    loaded.close()
