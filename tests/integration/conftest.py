"""A broker of its own for each module of tests, worker processes with instant models, and a catalogue to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from made_jobs import Catalogue, Workers

from producer.embedded import Broker
from shared.broker import make_app
from shared.connection import connect
from shared.errors import ModelMissingError
from shared.keys import STAGES
from shared.models import REGISTRY
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery import Celery
    from redis import Redis


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield Settings(broker=broker.url, visibility_timeout=4, retry_base=0.05, window=200, look_every=0.5)


@pytest.fixture(scope="module")
def workers(settings: Settings) -> Iterator[Workers]:
    started = Workers(settings)
    for stage in STAGES:
        started.start(stage, f"{stage}.priority,{stage}")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def models() -> None:
    """Skip where the starter models were not fetched."""
    try:
        for model in REGISTRY.values():
            if model.starter:
                model.find(Settings().models_dir)
    except ModelMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def client(settings: Settings) -> Iterator[Redis]:
    with connect(settings) as redis:
        yield redis


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    celery = make_app(settings)
    yield celery
    celery.close()


@pytest.fixture
def catalogue(tmp_path: Path, settings: Settings, app: Celery, client: Redis, workers: Workers) -> Catalogue:
    del workers
    return Catalogue(tmp_path, settings, app, client)
