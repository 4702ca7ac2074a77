"""Queues items: one chain of three tasks each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError

from producer.patience import Patience
from shared.connection import FULL
from shared.errors import BrokerError
from shared.keys import STAGES, queue_name
from shared.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery import Celery

    from shared.messages import Item

_RETRIES = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
# Celery's own wait, with which workers outlive any outage, would never end and show nothing; one retry renews a stale connection.


class Publisher:
    """Puts items into the first stage's queue, with what follows in their messages."""

    def __init__(self, app: Celery, *, priority: bool = False) -> None:
        self._app = app
        self._priority = priority

    def publish(self, items: Sequence[Item], tick: Callable[[], None]) -> None:
        """Queue items over one connection, calling `tick` while the broker is full or away. Raises `BrokerError` when that does not end.

        One that the broker took without saying so is queued twice, and made once.
        """
        waiting = iter(items)
        item = next(waiting, None)
        patience = Patience()
        while item:
            try:
                with self._app.producer_or_acquire() as producer:
                    while item:
                        self._enqueue(item, producer)
                        item = next(waiting, None)
            except OperationalError as error:
                patience.wait(_refused(error), tick)

    def _enqueue(self, item: Item, producer: Any) -> None:
        message = item.to_wire()
        said = f"{printable(item.key)} ({item.job} #{item.index})"  # what Flower shows beside the stage
        # Celery pops the next step from the end of the list.
        first, *rest = (
            self._app.signature(
                stage,
                args=(message,),
                immutable=True,
                options={"queue": queue_name(stage, priority=self._priority), "argsrepr": said},
            )
            for stage in STAGES
        )
        first.apply_async(chain=rest[::-1], producer=producer, retry_policy=_RETRIES)


def _refused(error: OperationalError) -> BrokerError:
    if isinstance(error.__cause__, OutOfMemoryError):
        return BrokerError(FULL)
    return BrokerError(f"the broker does not answer: start it, or check --broker ({error})")
