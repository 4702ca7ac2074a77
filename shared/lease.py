"""A right that one process holds at a time, kept in Redis and renewed while its holder lives."""

from __future__ import annotations

import math
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from shared.connection import broker_errors
from shared.errors import BrokerError, LeaseHeldError, LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

SECONDS = 15.0
"""After its holder was killed a lease is free within this time; a holder stopped for longer finds it gone."""

LONGEST_WAIT = 300.0
"""Seconds between two steps of who looks after jobs, a page of a thousand items from a slow storage; one that takes longer hangs."""

# A lease that is gone (the broker came back empty) is taken again: nobody else has it. KEYS: lease. ARGV: token, milliseconds.
_RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


def _key(name: str) -> str:
    return f"vitrina:lease:{name}"


def feeding(job: str) -> str:
    """Name the lease of who submits a job's photos."""
    return f"producer:{job}"


def is_held(client: redis.Redis, name: str) -> bool:
    """Tell whether a process holds a lease. Raises `BrokerError`."""
    with broker_errors():
        return bool(client.exists(_key(name)))


class Lease:
    """Held inside `with`, which may be entered again. Raises `LeaseHeldError` on entry when another process has it."""

    def __init__(self, client: redis.Redis, name: str, held: str, *, seconds: float = SECONDS) -> None:
        """Name the lease; `held` is what a person is told when another has it."""
        self._redis = client
        self._key = _key(name)
        self._held = held
        self._seconds = seconds
        self._token = secrets.token_hex(8)
        self._renew = client.register_script(_RENEW)
        self._stop = threading.Event()
        self._lost = False
        self._asked = self._renewed = 0.0
        # When its holder last asked for it, and when it was last certain, on the clock that goes on while a process is stopped.
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take it, or renew it; False when another process has it. Raises `BrokerError`."""
        self._asked = time.monotonic()
        return self._acquire()

    def _acquire(self) -> bool:
        now = time.monotonic()
        with broker_errors():
            acquired = bool(self._renew([self._key], [self._token, int(self._seconds * 1000)]))
        if acquired:
            self._renewed = now
        return acquired

    def check(self) -> None:
        """Raise `LeaseLostError` when another process has taken it meanwhile. Raises `BrokerError` when it has run out and nobody answers."""
        # Who was stopped gets here before the thread that renews: by the time, not by what that thread has seen.
        if self._lost or (time.monotonic() - self._renewed > self._seconds and not self.acquire()):
            self._lost = True
            raise LeaseLostError(f"{self._held}; this one was stopped for too long and ends")

    def __enter__(self) -> Self:
        if not self.acquire():
            raise LeaseHeldError(self._held)
        self._keep()
        return self

    def __exit__(self, *_: object) -> None:
        self._keep_no_more()
        self.release()

    @contextmanager
    def kept(self, at_most: float) -> Iterator[None]:
        """Renew it, which was acquired, while what may take long goes on; afterwards it stays this one's until it runs out.

        It is not renewed for longer than `at_most` seconds after it was last acquired here: who hangs must not have it for ever.
        """
        self._keep(at_most)
        try:
            yield
        finally:
            self._keep_no_more()

    def release(self) -> None:
        """Let it go, if it is this one's; where the broker does not answer it runs out by itself."""
        with suppress(BrokerError), broker_errors():
            self._redis.eval(_RELEASE, 1, self._key, self._token)

    def _keep(self, at_most: float = math.inf) -> None:
        self._lost = False
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew_again, args=(at_most,), name="lease", daemon=True)
        self._thread.start()

    def _keep_no_more(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _renew_again(self, at_most: float) -> None:
        while not self._stop.wait(self._seconds / 3) and time.monotonic() - self._asked < at_most:
            try:
                if not self._acquire():
                    # For good, though the other may have gone by the next look: it has worked meanwhile.
                    self._lost = True
                    return
            except BrokerError:
                continue  # it may have run out by the time the broker answers: then the next look tells
