"""The connection to Redis, and its errors in our words."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from shared.errors import BrokerError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.settings import Settings

FULL = "the broker's memory is full: let its queues drain, or raise its maxmemory"
QUICK_SECONDS = 2
"""For an answer that somebody waits for, such as Prometheus, which gives up after ten seconds."""


def connect(settings: Settings, *, quick: bool = False) -> redis.Redis:
    """Open a client of the progress, and of queues that are in Redis, that rides out short breaks or, with `quick`, says so at once. Nothing is sent until first use.

    Raises `UsageError` for what is no Redis address.
    """
    patient = Retry(ExponentialWithJitterBackoff(base=0.1, cap=2), retries=5)
    try:
        client = redis.Redis.from_url(
            (settings.progress or settings.broker).get_secret_value(),
            # 30: longer than any command here takes, shorter than a person waits
            socket_timeout=QUICK_SECONDS if quick else 30,
            socket_connect_timeout=QUICK_SECONDS if quick else 5,
            health_check_interval=25,
            retry=Retry(NoBackoff(), 0) if quick else patient,
            retry_on_error=[redis.exceptions.ConnectionError, redis.exceptions.TimeoutError],
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # what stands after a question mark is looked at here alone
    except (ValueError, TypeError):
        # The error would quote the address, and a password that is not percent-encoded ends up in any part of it.
        msg = "not a broker address: use redis://host:port/db, with the password's special characters percent-encoded"
        if settings.progress is None and settings.broker.get_secret_value().startswith(("amqp://", "amqps://")):
            msg = "progress is kept in Redis: beside a broker that is none, set VITRINA_PROGRESS=redis://host:port/db"
        raise UsageError(msg) from None
    return client


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn redis-py's errors into `BrokerError` with the next step."""
    try:
        yield
    except redis.exceptions.AuthenticationError as error:
        msg = f"the broker refuses our password: check VITRINA_BROKER ({error})"
        raise BrokerError(msg) from None
    except redis.exceptions.OutOfMemoryError:
        raise BrokerError(FULL) from None
    except redis.exceptions.RedisError as error:
        msg = f"the broker does not answer: start one (`vitrina up` does, for one machine), or check --broker ({error})"
        raise BrokerError(msg) from None
