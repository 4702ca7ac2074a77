"""A Redis transport for kombu that cannot lose a message when its worker is killed.

kombu's own pops a message and only then records it as unacknowledged; a SIGKILL between the two loses it. Here one script
does both, so a message is always either in its queue or recorded. The lease on a recorded message (the visibility timeout) is renewed
while its worker lives, so that a long task is not handed out twice and a dead worker's messages come back soon. Leases run by the server's
clock: those of two workers differ.

A worker with several free threads takes as many messages at once, from a long queue: each taking costs it a turn of its event loop.

kombu's own also hands messages back in a transaction that fails whenever any worker takes or acknowledges one meanwhile, and tries again
for as long as that goes on. Here it is one script as well.

A free worker waits in `BLMOVE queue queue RIGHT RIGHT`, which moves the next message onto its own place: it blocks until
there is one and takes nothing. It can watch one queue only: of several the last, which is the one that is fed most.

An acknowledgement waits for the end of its turn of the event loop, and so travels with the next taking where there is one. Lost on
the way it is sent again; lost with its worker, the message comes back and its work is found done.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from queue import Empty
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Literal

from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError, OutOfMemoryError, RedisError  # noqa: A004 - the client's own

from shared.envelope import MAX_BYTES, check_envelope
from shared.errors import MessageError
from shared.keys import QUEUES
from shared.transport_scripts import EXPIRED, FORGET, RENEW, RESTORE, TAKE

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

WAIT_SECONDS = 1
"""Longest wait on one queue; bounds how late a message is seen whose waiting worker died."""
SEVERAL_WAIT_SECONDS = 0.1
"""Wait between two looks at the other queues of a worker that serves several."""


MAX_ANSWER_BYTES = 2**30
"""More than any broker takes."""
SETTLE_TRIES = 2
"""The second over a connection that is not the one that broke."""


class QoS(redis.QoS):  # type: ignore[misc] # kombu ships no types
    """Holds leases: records nothing twice, renews what is held."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acknowledged: list[str] = []
        self._carried = 0

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a delivered message; the script has recorded it already."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message: with the next taking, where an event loop turns, and at once elsewhere."""
        virtual.QoS.ack(self, delivery_tag)
        if self.channel.gathers:
            self._acknowledged.append(delivery_tag)
        else:
            self._settle(partial(self._forget, [delivery_tag]))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Hand a message back, or drop it."""
        self._settle(partial(super().reject, delivery_tag, requeue=requeue))
        virtual.QoS.ack(self, delivery_tag)

    def refuse(self, delivery_tag: str) -> None:
        """Drop a message that was taken and is not delivered: it does not count against the prefetch limit."""
        self._settle(partial(self._forget, [delivery_tag]))

    def carry(self) -> list[str]:
        """Return what the next taking acknowledges; `carried` ends it."""
        self._carried = len(self._acknowledged)
        return self._acknowledged

    def carried(self, *, answered: bool) -> None:
        """End the taking; what is not known to have got there is sent again, which does no harm."""
        if answered:
            del self._acknowledged[: self._carried]
        self._carried = 0

    def acknowledge(self) -> None:
        """Acknowledge what no taking carries."""
        if tags := self._acknowledged[self._carried :]:
            self._settle(partial(self._forget, tags))
            del self._acknowledged[self._carried :]

    def _forget(self, tags: list[str]) -> None:
        with self.channel.conn_or_acquire() as client:
            client.eval(FORGET, 2, self.unacked_index_key, self.unacked_key, *tags)

    def _settle(self, do: Callable[[], None]) -> None:
        # A message whose settling fails is forgotten here all the same. It would stay ours for ever: renewed, counted against the prefetch
        # limit, never run. As it is, its lease runs out, and whoever gets it then finds the work done.
        for _ in range(SETTLE_TRIES):
            try:
                do()
            except (RedisError, OSError) as error:
                log.warning("a message is left to its lease: %s", error)
            else:
                return

    def held(self) -> dict[str, Any]:
        """Return the messages by tag that are delivered and neither acknowledged nor handed back."""
        # Those are dropped from `_delivered` only at the next delivery. The watchdog asks from a thread of its own: going through an ordered
        # dictionary lets others in, who change it, and is then an error. This copy is one step.
        delivered: dict[str, Any] = dict.copy(self._delivered)
        return {tag: message for tag, message in delivered.items() if tag not in self._dirty}

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 1) -> None:
        """Renew our own leases, then hand back the messages of those who no longer do. Called by kombu's timer."""
        del start, num, interval  # all, and each time: that takes no longer than a few milliseconds
        with self.channel.conn_or_acquire() as client:
            if not self.channel.over and (held := self.held()):
                client.eval(RENEW, 1, self.unacked_index_key, *held)
            fixed = [self.unacked_index_key, self.unacked_key]
            for tag in client.eval(EXPIRED, 2, *fixed, self.visibility_timeout):
                self._restore(client, tag, "RPUSH", self.visibility_timeout)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Hand a message back that is still recorded: as the next one of its queue or, with `leftmost`, as the last."""
        with self.channel.conn_or_acquire(client) as open_client:
            self._restore(open_client, tag, "LPUSH" if leftmost else "RPUSH")

    def _restore(self, client: Any, tag: str, push: str, unrenewed: float | Literal[""] = "") -> None:
        record = client.hget(self.unacked_key, tag)
        if record is None:
            return  # whoever has settled it was faster
        queues, message = self.channel.recorded(record)
        fixed = [self.unacked_index_key, self.unacked_key]
        client.eval(RESTORE, len(fixed) + len(queues), *fixed, *queues, tag, message, push, unrenewed)


class Channel(redis.Channel):  # type: ignore[misc] # kombu ships no types
    """Takes and records in one step, and acknowledges in the same."""

    QoS = QoS
    _shared: Any = None
    over = False
    """Whether it was closed, or was to be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle = False
        self._waiting = False
        self._full = False

    def close(self) -> None:
        """Close. Over a broken connection that may fail half-way, and a timer still call us: what we held is no longer ours all the same."""
        self.over = True
        if self._qos:
            self._qos.carried(answered=False)
            self._qos.acknowledge()
        super().close()

    @property
    def due(self) -> int:
        """How many messages it holds that do not wait for their time, as a retry does."""
        now = datetime.now(UTC)
        return sum(not _waits(message, now) for message in self.qos.held().values())

    @property
    def gathers(self) -> bool:
        """Whether acknowledgements may wait for the end of the event loop's turn."""
        return self.connection is not None and self.connection.cycle.turns

    def _create_client(self, asynchronous: bool = False) -> Any:
        # Called for every acknowledgement and every message sent. A client holds nothing but its pool, and making one costs
        # more than a command does.
        if self.connection is None:
            # kombu would stumble over the missing connection; this it knows, and opens another channel.
            raise ConnectionError("the channel was closed with its connection")
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._shared is None or self._shared.connection_pool is not self.pool:
            self._shared = super()._create_client()
        return self._shared

    def recorded(self, record: bytes) -> tuple[list[str], str]:
        """Read a recorded message: where it goes when it is handed back, and what goes there; nowhere, when it cannot be read."""
        try:
            message, exchange, routing_key = redis.loads(record)
            message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
            text, names = dumps(message), (str(exchange), str(routing_key))
        except Exception as error:  # noqa: BLE001 - as in `_parsed`; whoever can write to the broker can write here as well
            _tell_refused("", f"what is recorded of it cannot be read ({type(error).__name__})")
            return [], ""
        priority = self._get_message_priority(message, reverse=False)
        return [self._q_for_pri(queue, priority) for queue in self._lookup(*names)], text

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Send, and say when: a message that is handed out again has waited since then."""
        if queue in QUEUES:
            message["headers"]["published"] = time()
        super()._put(queue, message, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        del timeout
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self._waiting = self._idle
        self.qos.carried(answered=False)  # the taking before may have ended without an answer
        if not self._idle:
            names = [queue for _ in self.priority_steps for queue in queues]
            fixed = [self.unacked_index_key, self.unacked_key]
            tags = self.qos.carry()
            free = self.qos.can_consume_max_estimate() or 1
            command = ["EVAL", TAKE, len(keys) + 2, *fixed, *keys, _largest(names), free, *names, *tags]
        elif not self._full:
            wait = WAIT_SECONDS if len(queues) == 1 else SEVERAL_WAIT_SECONDS
            last = keys[len(queues) - 1]
            command = ["BLMOVE", last, last, "RIGHT", "RIGHT", wait]
        else:
            command = ["BLPOP", f"{self.unacked_key}:nothing", WAIT_SECONDS]
        if self.global_keyprefix:
            command = self.client._prefix_args(command)  # noqa: SLF001 - kombu's own hook
        self._in_poll.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:
        waited, self._waiting = self._waiting, False
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "EVAL", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            except OutOfMemoryError:
                # A full server refuses `BLMOVE`, even where there is nothing to move; taking and a plain wait still work.
                self._full, self._idle = True, False
                raise Empty from None
            else:
                self._full = self._full and not waited
                self.qos.carried(answered=True)
            self._idle = not waited and not answer
            if waited or not answer:
                raise Empty
            queue = redis.bytes_to_str(answer[0][0])
            self._queue_cycle.rotate(queue)
            for taken in answer:
                with suppress(Empty):  # refused; those after it are delivered
                    self._deliver_checked(self._parsed(taken), queue)
            return True
        finally:
            self._in_poll = None
            self.qos.carried(answered=False)
            self._flush_brpop_reauth()

    def _parsed(self, taken: list[bytes]) -> Any:
        """Read a message that the script took. Raises `Empty` for one that is refused."""
        queue, message, tag, *refused = taken
        if refused:
            _tell_refused(redis.bytes_to_str(queue), redis.bytes_to_str(refused[0]))
            raise Empty
        try:
            return redis.loads(message)
        except Exception as error:  # noqa: BLE001 - kombu makes objects of what says so, and a wrong one raises anything
            # The server's parser takes more than ours: bytes that are no text, hexadecimal numbers. Let through, it would end every worker in turn.
            _tell_refused(redis.bytes_to_str(queue), f"it cannot be read ({type(error).__name__})")
            self.qos.refuse(tag)
            raise Empty from None

    def _deliver_checked(self, message: Any, queue: str) -> None:
        if queue in QUEUES:  # the others are Celery's own, such as answers to its questions
            try:
                check_envelope(message, queue)
            except MessageError as error:
                # Let through, it would be logged over many lines, or end the worker and then the next one.
                _tell_refused(queue, str(error))
                self.qos.refuse(message["properties"]["delivery_tag"])
                raise Empty from None
        self.connection._deliver(message, queue)  # noqa: SLF001 - as kombu does

    def _get(self, queue: str) -> Any:
        # Used by `basic_get` alone (tests, tools); recorded like any other.
        with self.conn_or_acquire() as client:
            keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
            fixed = [self.unacked_index_key, self.unacked_key]
            names = [queue for _ in keys]
            answer = client.eval(TAKE, len(keys) + 2, *fixed, *keys, _largest(names), 1, *names)
        if not answer:
            raise Empty
        return self._parsed(answer[0])


def _largest(queues: list[str]) -> int:
    """Return the largest message of these queues in bytes: answers to Celery's own questions may be long."""
    return MAX_BYTES if set(queues) <= set(QUEUES) else MAX_ANSWER_BYTES


def _waits(message: Any, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(message.headers["eta"]) > now
    except (KeyError, TypeError, ValueError):
        return False  # it says no time


def _tell_refused(queue: str, why: str) -> None:
    log.error("message refused and dropped: %s", why, extra={"action": "refused", "stage": queue.partition(".")[0]})


class Poller(redis.MultiChannelPoller):  # type: ignore[misc] # kombu ships no types
    """Sends at the end of a turn of the event loop what was acknowledged in it."""

    turns = False
    """Whether a loop turns."""

    def on_poll_start(self) -> None:
        """Take what comes next, and acknowledge what no taking carries. Called by kombu at every turn."""
        super().on_poll_start()
        self._acknowledge()

    def on_readable(self, fileno: int) -> None:
        """Read whatever comes. kombu leaves it unread while no thread is free: what was taken for this worker is its own already, and its lease would run out."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is not None and kind == "BRPOP" and channel._in_poll:  # noqa: SLF001 - kombu's own way
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def _update_brpop_polling(self) -> None:
        """Stop watching no connection, as above."""

    def stop(self, hub: Any) -> None:
        """End the last turn: what is acknowledged from now on is sent at once."""
        hub.on_close.discard(self.stop)
        self.turns = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        for channel in self._channels:
            channel.qos.acknowledge()


class Transport(redis.Transport):  # type: ignore[misc] # kombu ships no types
    """kombu's Redis transport on the channel and the poller above."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Be polled by a worker's event loop."""
        super().register_with_event_loop(connection, loop)
        self.cycle.turns = True
        loop.on_close.add(self.cycle.stop)
