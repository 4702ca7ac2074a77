"""The models that a worker has loaded: each with its batcher, the last used kept, the others gone before a new one takes their memory."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from shared.errors import OutOfMemoryError, StageFailedError, VitrinaError
from shared.settings import USUAL_BATCH
from workers import metrics
from workers.batcher import Batcher, HandedBackError, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shared.keys import StageName
    from shared.recipe import ModelSection
    from shared.settings import Settings
    from workers.stage import Model

log = logging.getLogger(__name__)

LOAD_AGAIN = 60.0
"""Seconds until a model that does not load is tried again: every photo of its job asks for it, and other jobs' models make room each time."""
LOAD_AGAIN_SOON = 10.0
"""The same, where trying again may help: memory that is held elsewhere."""
LET_GO = 30.0
"""Seconds that a model's last users have to let go of it before another takes its memory."""


class LoadedModels:
    """One stage's models in one worker process. All methods are safe to call from many threads."""

    def __init__(
        self,
        stage: StageName,
        settings: Settings,
        *,
        make: Callable[[StageName, ModelSection, Settings], Model[Any, Any]],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Keep `settings.models_kept` of what `make` builds; nothing is loaded once `stopping` says so."""
        self.stage = stage
        self.settings = settings
        self._make = make
        self._stopping = stopping
        self._models: dict[str, tuple[Model[Any, Any], Batcher[Any, Any]]] = {}
        self._refused: dict[str, tuple[type[VitrinaError], str, float]] = {}
        self._loading = threading.Lock()

    def close(self) -> None:
        """Finish the batches."""
        for _, batcher in self._models.values():
            batcher.close()

    def hand_back(self) -> None:
        """Give up what waits for a batch: the worker is shutting down."""
        for _, batcher in list(self._models.values()):
            batcher.hand_back()

    def get(self, section: ModelSection) -> tuple[Model[Any, Any], Batcher[Any, Any]]:
        """Return the model that a section chooses and its batcher, loading it on first use.

        Raises `ModelMissingError`, `ModelCorruptError`, `OutOfMemoryError`, `HandedBackError`.
        """
        identity, name = section.identity(), section.model
        with self._loading:
            if identity in self._models:
                self._models[identity] = self._models.pop(identity)  # the last used comes last
            else:
                if self._stopping():
                    raise HandedBackError
                self._unless_refused(identity)
                self._make_room()
                start = time.perf_counter()
                try:
                    model = self._load(section)
                except Exception as error:  # of any kind; raised again, and not tried anew for each photo
                    self._refuse(identity, error)
                    raise
                batcher = Batcher(
                    self._counted(model),
                    model.bucket,
                    max_batch=min(filter(None, (self.settings.max_batch, model.max_batch)), default=USUAL_BATCH),
                    deadline=self.settings.batch_deadline,
                )
                self._models[identity] = model, batcher
                seconds = round(time.perf_counter() - start, 2)
                metrics.loaded(self.stage, name, seconds)
                log.info("loaded %s", name, extra={"action": "loaded", "stage": self.stage, "seconds": seconds})
            return self._models[identity]

    def _load(self, section: ModelSection) -> Model[Any, Any]:
        model = self._make(self.stage, section, self.settings)
        try:
            model.load(self.settings.device, self.settings.threads_per_model())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            msg = f"model {section.model} does not fit the memory of device {self.settings.device!r}: free it, or choose a smaller model"
            raise OutOfMemoryError(msg) from error
        return model

    def _refuse(self, identity: str, error: Exception) -> None:
        told = error if isinstance(error, VitrinaError) else StageFailedError(f"{type(error).__name__}: {error}")
        again = LOAD_AGAIN_SOON if told.retryable else LOAD_AGAIN
        # Not the error itself, whose traceback holds whatever of the model was loaded.
        self._refused[identity] = type(told), str(told), time.monotonic() + again

    def _unless_refused(self, identity: str) -> None:
        if identity in self._refused:
            kind, text, until = self._refused[identity]
            if time.monotonic() < until:
                raise kind(text)
            del self._refused[identity]

    def _make_room(self) -> None:
        while len(self._models) >= self.settings.models_kept:
            oldest = next(iter(self._models))
            log.info("unloading %s", oldest, extra={"action": "unload", "stage": self.stage})
            self._unload(oldest)
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def _unload(self, identity: str) -> None:
        """End a model's batches, and wait until the threads that prepare and finish items with it are through: its memory is wanted."""
        model, batcher = self._models.pop(identity)
        batcher.close()
        held = weakref.ref(model)
        del model, batcher
        until = time.monotonic() + LET_GO
        while True:
            gc.collect()  # models are full of cycles
            if held() is None:
                return
            if time.monotonic() > until:
                log.warning("%s is still in use", identity, extra={"action": "unload", "stage": self.stage})
                return
            time.sleep(0.05)

    def _counted(self, model: Model[Any, Any]) -> Callable[[Sequence[Any]], Sequence[Any]]:
        sizes, busy = metrics.BATCHES.labels(self.stage), metrics.BUSY.labels(self.stage)

        def infer(batch: Sequence[Any]) -> Sequence[Any]:
            sizes.observe(len(batch))
            start = time.perf_counter()
            try:
                return model.infer(batch)
            finally:
                busy.inc(time.perf_counter() - start)

        return infer
