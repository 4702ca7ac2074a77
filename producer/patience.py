"""How long a producer waits for a broker that is full or away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from shared.errors import BrokerError, ProgressLostError

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 120.0
"""Longer than any restart; a person who waits is shown what is known meanwhile."""
AGAIN_SECONDS = 1.0
"""Between two tries."""
AGAIN = "then run the same command again: finished photos are skipped"

Answer = TypeVar("Answer")


class Patience:
    """The time that is left for one wait."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SECONDS

    def wait(self, error: BrokerError, meanwhile: Callable[[], None]) -> None:
        """Wait for the next try. Raises `error`, with what to do next, when it has been long enough."""
        if time.monotonic() > self._until:
            raise BrokerError(f"{error}; {AGAIN}") from None
        meanwhile()
        time.sleep(AGAIN_SECONDS)


def patiently(do: Callable[[], Answer], meanwhile: Callable[[], None]) -> Answer:
    """Do something that needs the broker, calling `meanwhile` as long as it does not answer. Raises `BrokerError`."""
    patience = Patience()
    while True:
        try:
            return do()
        except ProgressLostError:
            raise  # it answers, and has forgotten
        except BrokerError as error:
            patience.wait(error, meanwhile)
