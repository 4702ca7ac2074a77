"""The transport's promises, against a real broker: what is taken is recorded, what goes back goes back once, and leases run by one clock."""

from __future__ import annotations

import base64
import gc
import json
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Consumer, Queue
from kombu.asynchronous import Hub
from made_jobs import wait_until
from redis.connection import Connection

from producer.embedded import Broker
from shared import transport
from shared.broker import make_app
from shared.connection import connect
from shared.envelope import MAX_BYTES
from shared.keys import STAGES
from shared.messages import Item
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery
    from kombu import Message
    from redis import Redis

FIRST, LAST = f"{STAGES[0]}.priority", STAGES[0]
LEASE = 3600.0
"""Long enough that none runs out by itself: who wants one to asks for it."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield Settings(broker=broker.url, visibility_timeout=LEASE)


@pytest.fixture
def client(settings: Settings) -> Iterator[Redis]:
    with connect(settings) as redis:
        redis.flushdb()
        yield redis


@pytest.fixture
def app(settings: Settings, client: Redis) -> Iterator[Celery]:
    del client  # empty from here on
    celery = make_app(settings)
    yield celery
    celery.close()


def send(app: Celery, *numbers: int, queue: str = LAST, eta: datetime | None = None) -> None:
    for number in numbers:
        item = Item("job", number, f"{number}.jpg", "e").to_wire()
        app.signature(STAGES[0], args=(item,)).apply_async(queue=queue, eta=eta)


def number(message: Any) -> int:
    """Return which item a delivered message is about."""
    return int(message.decode()[0][0]["index"])


def waiting(client: Redis, queue: str = LAST) -> list[int]:
    """Return which items wait in a queue, the next one last."""
    messages: Any = client.lrange(queue, 0, -1)
    bodies = [json.loads(base64.b64decode(json.loads(text)["body"])) for text in messages]
    return [int(body[0][0]["index"]) for body in bodies]


def tags(messages: list[Any]) -> list[str]:
    return [message.delivery_tag for message in messages]


def expire(client: Redis, *messages: Any) -> None:
    """Let the leases on messages run out, as if their worker had been dead for long."""
    client.zadd("unacked_index", dict.fromkeys(tags(list(messages)), 1.0), xx=True)


def held(client: Redis) -> int:
    records, index = int(client.hlen("unacked")), int(client.zcard("unacked_index"))  # type: ignore[arg-type] # not asynchronous
    assert records == index
    return records


class Consuming:
    """A consumer in a turning event loop, as a worker has one."""

    def __init__(self, app: Celery, queues: list[str], prefetch: int = 0) -> None:
        self.taken: list[Message] = []
        self.hub = Hub()
        self.connection = app.connection_for_read()
        self.connection.register_with_event_loop(self.hub)
        self.channel = self.connection.channel()
        self.hub.propagate_errors = self.connection.connection_errors
        consumer = Consumer(self.channel, [Queue(name) for name in queues], on_message=self.taken.append)
        consumer.qos(prefetch_count=prefetch)
        consumer.consume()
        self._turns = self.hub.create_loop()

    def turn_until(self, what: Callable[[], object], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, "it never came to pass"
            next(self._turns)

    def take(self, count: int) -> list[Message]:
        self.turn_until(lambda: len(self.taken) >= count)
        return self.taken

    def close(self) -> None:
        self.hub.close()
        self.connection.close()


@contextmanager
def consuming(app: Celery, *queues: str, prefetch: int = 0) -> Iterator[Consuming]:
    one = Consuming(app, list(queues), prefetch)
    try:
        yield one
    finally:
        one.close()


@contextmanager
def churning(settings: Settings) -> Iterator[None]:
    """Let others take and acknowledge without a pause."""
    stop = threading.Event()

    def churn() -> None:
        with connect(settings) as redis:
            while not stop.is_set():
                with redis.pipeline(transaction=False) as pipe:
                    for _ in range(20):
                        pipe.hset("unacked", "other", "[]")
                        pipe.hdel("unacked", "other")
                    pipe.execute()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("how", ["rejected", "expired", "closed"])
def test_a_message_goes_back_however_fast_others_take_and_acknowledge(
    settings: Settings, app: Celery, client: Redis, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also from a worker that is some milliseconds away: in one step, where a transaction over what all hold would never end."""
    send_packed = Connection.send_packed_command

    def send_far(self: Connection, *args: Any, **kwargs: Any) -> None:
        if threading.current_thread().name == "far":
            time.sleep(0.02)
        send_packed(self, *args, **kwargs)

    monkeypatch.setattr(Connection, "send_packed_command", send_far)
    send(app, 0, 1, 2)
    with app.connection_for_read() as connection, app.connection_for_read() as other:
        channel, sweeper = connection.channel(), other.channel()
        taken = [channel.basic_get(LAST) for _ in range(3)]
        assert held(client) == 3

        def go_back() -> None:
            if how == "rejected":
                for message in taken:
                    message.requeue()
            elif how == "closed":
                channel.close()
            else:
                expire(client, *taken)
                sweeper.qos.restore_visible()

        with churning(settings):
            thread = threading.Thread(target=go_back, name="far", daemon=True)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
        assert sorted(waiting(client)) == [0, 1, 2]
        assert held(client) == 0


def test_what_goes_back_is_the_next_or_the_last_and_says_so(app: Celery, client: Redis) -> None:
    """What a dead worker held is next; what was handed back lets others go first. But for a mark, the message is as it was."""
    send(app, 0, 1, 2, 3)
    sent = json.loads(client.lindex(LAST, -1))  # type: ignore[arg-type] # not asynchronous
    with app.connection_for_read() as connection, app.connection_for_read() as other:
        channel = connection.channel()
        first, second = channel.basic_get(LAST), channel.basic_get(LAST)
        first.requeue()
        assert waiting(client) == [0, 3, 2]
        expire(client, second)
        other.channel().qos.restore_visible()
        assert waiting(client) == [0, 3, 2, 1]
        back = json.loads(client.lindex(LAST, 0))  # type: ignore[arg-type] # as above
    assert back["headers"].pop("redelivered") is back["properties"]["delivery_info"].pop("redelivered") is True
    assert back == sent


def test_who_starts_looks_at_once_for_what_the_dead_held(app: Celery, client: Redis) -> None:
    """It may be the only worker left: the timer's first interval would go by with nobody looking."""
    send(app, 0)
    with app.connection_for_read() as dead:
        channel = dead.channel()
        expire(client, channel.basic_get(LAST))
        assert waiting(client) == []
        with consuming(app, LAST) as worker:
            worker.channel.connection.cycle._restore_messages_tref.cancel()
            assert [number(message) for message in worker.take(1)] == [0]
            assert worker.taken[0].headers["redelivered"]


def test_what_has_been_settled_does_not_come_back(app: Celery, client: Redis) -> None:
    """Whoever hands it back a second time, or finds it in the index alone, changes nothing."""
    send(app, 0)
    with app.connection_for_read() as connection, app.connection_for_read() as other:
        channel = connection.channel()
        message = channel.basic_get(LAST)
        for _ in range(2):
            channel.qos.reject(message.delivery_tag, requeue=True)
        assert waiting(client) == [0]
        client.zadd("unacked_index", {"settled": 1.0})
        other.channel().qos.restore_visible()
        assert waiting(client) == [0]
        assert held(client) == 0


@pytest.mark.parametrize("ahead", [-1e5, 1e5])
@pytest.mark.parametrize("who", ["takes", "renews", "looks"])
def test_a_worker_whose_clock_is_wrong_takes_nothing_from_the_living(
    app: Celery, client: Redis, monkeypatch: pytest.MonkeyPatch, who: str, ahead: float
) -> None:
    """Nor does it keep what it held when it has died: leases run by the server's clock."""
    real = time.time

    def by(name: str) -> None:
        clock = (lambda: real() + ahead) if name == who else real
        for module in ("shared.transport", "kombu.transport.redis"):
            monkeypatch.setattr(f"{module}.time", clock)

    send(app, 0)
    with app.connection_for_read() as connection, app.connection_for_read() as other:
        living, sweeper = connection.channel(), other.channel()
        by("takes")
        message = living.basic_get(LAST)
        by("renews")
        if who == "renews":
            living.qos.restore_visible()
        by("looks")
        sweeper.qos.restore_visible()
        assert held(client) == 1
        sweeper.qos.__dict__["visibility_timeout"] = 0.001
        time.sleep(0.01)
        sweeper.qos.restore_visible()
        assert waiting(client) == [number(message)]


def test_records_that_cannot_be_read_stop_nobody(app: Celery, client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """They are dropped with a line each, and what lies beside them goes back."""
    odd = [b"", b"7", b"[]", b"[1, 2, 3]", b'[{"headers": {}}, "", ""]', b"\xff", b"[" * 5000]
    send(app, 0)
    with app.connection_for_read() as connection, app.connection_for_read() as other:
        message = connection.channel().basic_get(LAST)
        expire(client, message)
        for place, record in enumerate(odd):
            client.hset("unacked", f"odd{place}", record)
            client.zadd("unacked_index", {f"odd{place}": float(place)})
        other.channel().qos.restore_visible()
        assert waiting(client) == [0]
        assert held(client) == 0
    assert sum("message refused and dropped" in record.message for record in caplog.records) == len(odd)


def test_a_full_broker_renews_leases_and_takes_messages_back(app: Celery, client: Redis) -> None:
    """It refuses what takes memory: neither does. Else what live workers hold would be handed out twice as soon as there is room."""
    send(app, 0, 1)
    with app.connection_for_read() as connection:
        channel = connection.channel()
        taken = [channel.basic_get(LAST) for _ in range(2)]
        expire(client, *taken)
        client.config_set("maxmemory", "1")
        try:
            channel.qos.restore_visible()
            assert min(score for _, score in client.zrange("unacked_index", 0, -1, withscores=True)) > 1e6
            for message in taken:
                message.requeue()
        finally:
            client.config_set("maxmemory", "0")
        assert sorted(waiting(client)) == [0, 1]


def test_a_retry_that_waits_is_held_and_not_due(app: Celery, client: Redis) -> None:
    """Its time to wait is no time in which its worker does nothing; once that is over it is."""
    now = datetime.now(UTC)
    send(app, 0)
    send(app, 1, eta=now + timedelta(minutes=30))
    send(app, 2, eta=now - timedelta(minutes=30))
    with app.connection_for_read() as connection:
        channel = connection.channel()
        taken = [channel.basic_get(LAST) for _ in range(3)]
        assert (held(client), channel.due) == (3, 2)
        taken[0].ack()
        assert (held(client), channel.due) == (2, 1)


class Delivery:
    """Garbage with whose collection a message comes: in the middle of anything, as from another thread."""

    def __init__(self, qos: Any) -> None:
        self.itself, self.qos = self, qos

    def __del__(self) -> None:
        self.qos._delivered[f"late {id(self)}"] = None


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # what tests before it left to be collected
def test_messages_may_come_while_it_is_asked_what_is_held(app: Celery) -> None:
    """The watchdog asks, and would not outlive an exception."""
    with app.connection_for_read() as connection:
        qos = connection.channel().qos
        qos._delivered.update(dict.fromkeys(map(str, range(1000))))
        before = gc.get_threshold()
        gc.disable()
        try:
            gc.collect()  # the next one is a hundred objects later
            for _ in range(10):
                Delivery(qos)
            gc.set_threshold(100)
            gc.enable()
            assert len(qos.held()) >= 1000
        finally:
            gc.set_threshold(*before)
            gc.enable()
            gc.collect()
            qos._delivered.clear()


def test_the_first_queue_is_empty_before_the_second_is_looked_at(app: Celery, client: Redis) -> None:
    """However they were filled; each message is recorded as that of its own queue."""
    send(app, 0, 1, 2)
    send(app, 10, 11, 12, queue=FIRST)
    with consuming(app, FIRST, LAST, prefetch=4) as worker:
        assert [number(message) for message in worker.take(4)] == [10, 11, 12, 0]
        worker.taken.pop().requeue()
        worker.taken.pop().requeue()
        assert (waiting(client, FIRST), waiting(client)) == ([12], [0, 2, 1])
        assert [number(message) for message in worker.take(4)] == [10, 11, 12, 1]


@pytest.mark.parametrize(("queued", "at_once"), [(3, 1), (7, 1), (8, 2), (40, 6)])
def test_as_many_are_taken_at_once_as_are_free_yet_of_a_short_queue_others_have_their_share(
    app: Celery, client: Redis, queued: int, at_once: int
) -> None:
    """Six free threads: a quarter of what waits at most, in its order, each recorded."""
    send(app, *range(queued))
    with consuming(app, LAST, prefetch=6) as worker:
        assert [number(message) for message in worker.take(1)] == list(range(at_once))
        assert held(client) >= at_once
        assert [number(message) for message in worker.take(min(queued, 6))] == list(range(min(queued, 6)))
        for _ in range(20):
            next(worker._turns)
        assert (held(client), waiting(client)) == (min(queued, 6), list(range(6, queued))[::-1])


def test_what_is_refused_keeps_nothing_from_those_taken_with_it(
    app: Celery, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither what is no message at all, nor one that is too large, nor one of another stage."""
    send(app, 0)
    app.signature(STAGES[1], args=(Item("job", 1, "1.jpg", "e").to_wire(),)).apply_async(queue=LAST)
    client.lpush(LAST, "no message", "x" * (MAX_BYTES + 1))
    send(app, *range(2, 22))
    with consuming(app, LAST, prefetch=6) as worker:
        assert [number(message) for message in worker.take(1)] == [0, 2, 3]
        assert [number(message) for message in worker.take(6)] == [0, 2, 3, 4, 5, 6]
        assert held(client) == 6
    assert sum("message refused and dropped" in record.message for record in caplog.records) == 3


def test_what_is_refused_makes_no_room_for_more(app: Celery, client: Redis) -> None:
    """However many come: else the good ones behind them would be taken by the hundred, by one worker."""
    send(app, 0, 1, 2)
    for other in range(40):
        app.signature(STAGES[1], args=(Item("job", other, "o.jpg", "e").to_wire(),)).apply_async(queue=LAST)
    send(app, *range(3, 60))
    with consuming(app, LAST, prefetch=4) as worker:
        worker.turn_until(lambda: len(worker.taken) == 4)
        for _ in range(20):
            next(worker._turns)
        assert (held(client), len(worker.taken)) == (4, 4)


def test_what_was_taken_is_read_though_no_thread_is_free_any_more(app: Celery, client: Redis) -> None:
    """Left unread its lease would run out: it is this worker's already, and nobody renews it."""
    send(app, *range(40))
    with consuming(app, LAST, prefetch=4) as worker:
        cycle = worker.channel.connection.cycle
        cycle.on_poll_start()
        wait_until(lambda: held(client) == 4)
        worker.channel.qos.prefetch_count = 1
        worker.channel.qos._delivered["another"] = None
        assert not worker.channel.qos.can_consume()
        worker.turn_until(lambda: len(worker.taken) == 4)
        del worker.channel.qos._delivered["another"]


@pytest.mark.parametrize(("queues", "fed"), [((LAST,), LAST), ((FIRST, LAST), LAST), ((FIRST, LAST), FIRST)])
def test_a_worker_that_waits_takes_at_once_what_comes(
    app: Celery, client: Redis, monkeypatch: pytest.MonkeyPatch, queues: tuple[str, ...], fed: str
) -> None:
    """Of several queues the one that is fed most wakes it, and the others are looked at often."""
    monkeypatch.setattr(transport, "WAIT_SECONDS", 50)
    monkeypatch.setattr(transport, "SEVERAL_WAIT_SECONDS", 50 if fed == LAST else 0.1)
    with consuming(app, *queues) as worker:
        channel = worker.channel
        worker.turn_until(lambda: channel._waiting and client.info("clients")["blocked_clients"])  # type: ignore[index] # not asynchronous
        send(app, 7, queue=fed)
        worker.turn_until(lambda: worker.taken, seconds=25)
        assert number(worker.taken[0]) == 7
        assert held(client) == 1


@pytest.mark.parametrize("arrived", [False, True])
def test_acknowledgements_survive_the_connection_that_carried_them(
    app: Celery, client: Redis, *, arrived: bool
) -> None:
    """Sent with a taking that may not have arrived: they are sent again, and whoever connects anew gets what is left, once."""
    send(app, *range(4))
    with consuming(app, LAST, prefetch=3) as worker:
        for message in worker.take(3):
            message.ack()
        if not arrived:
            client.client_kill_filter(_type="normal", skipme=True)
        worker.channel.connection.cycle.on_poll_start()
        assert worker.channel.qos._carried == 3
        if arrived:
            wait_until(lambda: held(client) == 1)
            client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(worker.connection.connection_errors):
            worker.turn_until(lambda: False)
        with suppress(*worker.connection.connection_errors):
            worker.channel.close()
    assert (waiting(client), held(client)) == ([3], 0)
    with consuming(app, LAST) as worker:
        assert [number(message) for message in worker.take(1)] == [3]
        worker.taken.pop().ack()
        worker.turn_until(lambda: not held(client))
        assert waiting(client) == []


@pytest.mark.parametrize("idle", [False, True])
def test_a_channel_that_closes_amid_a_taking_loses_nothing(app: Celery, client: Redis, *, idle: bool) -> None:
    """What the server has taken for it meanwhile goes back; one that waits leaves the queue as it is."""
    with consuming(app, LAST) as worker:
        channel = worker.channel
        if idle:
            worker.turn_until(lambda: channel._waiting)
            send(app, 0, 1)
        else:
            send(app, 0, 1)
            channel.connection.cycle.on_poll_start()
            wait_until(lambda: held(client))
        channel.close()
        assert waiting(client) == [1, 0]
        assert held(client) == 0
