"""The Celery application: every setting with its reason. Producer and workers build it from the same settings."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu import Queue

from shared.keys import QUEUES, STAGES
from shared.settings import USUAL_THREADS

if TYPE_CHECKING:
    from shared.settings import Settings


def _transport_options(settings: Settings) -> dict[str, Any]:
    if not settings.queues_in_redis:
        return {
            "confirm_publish": True
        }  # RabbitMQ says that it has a message; without, one that it refuses is lost in silence
    # A live worker renews its leases: a few missed renewals mean that it is dead. kombu's own renews none, and hands out what runs for longer a
    # second time: what may run for longer, the watchdog has ended by then.
    lease = settings.visibility_timeout if settings.transport == "atomic" else settings.task_deadline
    return {
        "visibility_timeout": lease,
        # Leases are renewed and swept each time; four fit into one. kombu's default is 10, and none fits.
        "unacked_restore_interval": min(5, lease / 4),
        # kombu's own sweeps only every so many times: its default, 10, redelivers minutes late.
        "unacked_restore_throttle": 1,
        # kombu's own sweeps take turns, in milliseconds. Whoever loses its connection in one must not keep the others from theirs for five minutes.
        "unacked_mutex_expire": 5,
        # Message priorities split a queue into several keys that dashboards and autoscalers do not see.
        "priority_steps": [0],
        # A worker takes from the first of its queues that has anything: the one of priority comes first.
        "queue_order_strategy": "priority",
        # Longer than any command takes, the idle wait of a second included; without it a broker that went away in silence is waited for for ever.
        "socket_timeout": 30,
        # A machine that is up answers at once, and one that is down may be another's address by the next try.
        "socket_connect_timeout": 5,
        # A connection that was idle for as long is tried before it is used: firewalls forget those of half a minute or more, and tell nobody.
        "health_check_interval": 25,
    }


def _queue(name: str, settings: Settings) -> Queue:
    # On RabbitMQ a queue that is replicated and written to disk; Redis knows no kinds.
    kind = None if settings.queues_in_redis else {"x-queue-type": "quorum"}
    return Queue(name, routing_key=name, queue_arguments=kind)


def _tls(url: str) -> tuple[str, dict[str, Any] | None]:
    """Split a `rediss://` address into one without options and kombu's TLS options: with a transport named outright, kombu sets none itself."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return url, None
    asked = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    levels = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
    # The server's certificate is checked unless the address says otherwise, as redis-py does for the progress.
    level = levels.get(asked.pop("ssl_cert_reqs", "required").lower().removeprefix("cert_"), ssl.CERT_REQUIRED)
    return parts._replace(query="").geturl(), {"ssl_cert_reqs": level, **asked}


def make_app(settings: Settings) -> Celery:
    """Build the Celery application. Nothing is contacted until first use."""
    app = Celery("vitrina", set_as_current=False)
    address, tls = _tls(settings.broker.get_secret_value())
    app.conf.update(
        broker_url=address,
        broker_use_ssl=tls,
        # Redis's stock transport loses messages of killed workers; other brokers keep their own.
        broker_transport="shared.transport:Transport"
        if settings.queues_in_redis and settings.transport == "atomic"
        else None,
        broker_transport_options=_transport_options(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of the broker
        broker_channel_error_retry=True,  # and one that refuses a command (full, read-only) is an outage as well
        worker_cancel_long_running_tasks_on_connection_loss=False,  # crashes the threads pool at the first blip
        # Losing nothing: a message is acknowledged only after its task has ended, and kept when its worker dies.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,  # a warm shutdown must not hold more than it runs
        # Retries that wait are held beside what runs, and are not counted with it: bounded, however many photos fail at once.
        worker_eta_task_limit=1000,
        # One process has the model, and its threads hide reading and writing behind it. Celery's default forks, which no model survives.
        worker_pool="threads",
        worker_concurrency=settings.threads or USUAL_THREADS,  # where neither it nor the command line says
        # A next step that cannot be published waits for the broker rather than being given up.
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": None, "interval_start": 0, "interval_step": 0.5, "interval_max": 3},
        # What is done is known from storage; results would only fill Redis.
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # JSON only: a message can never run code.
        task_serializer="json",
        accept_content=["json"],
        # Two queues per stage and nothing else: a misspelt one is an error, not a place to get lost in.
        task_queues=[_queue(name, settings) for name in QUEUES],
        task_routes={stage: {"queue": stage} for stage in STAGES},
        task_create_missing_queues=False,
        task_default_queue=STAGES[0],
        # Flower lives on worker events; one more per message sent would double them for nothing.
        worker_send_task_events=True,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app
