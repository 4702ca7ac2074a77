"""Flower, the window on queues, workers and tasks, started with our settings: with a password, or for this machine alone."""

from __future__ import annotations

import ipaddress
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES

from shared.broker import make_app
from shared.connection import connect
from shared.errors import UsageError
from shared.keys import QUEUES
from shared.logs import configure_logging

if TYPE_CHECKING:
    from shared.settings import Settings

SAVE_SECONDS = 60
"""Between two times that what Flower remembers is written to its file: what a crash may cost. Ten thousand tasks take a second of it."""
GONE_SECONDS = 3600
"""For which a worker that has ended is still shown, so that one sees it."""


def run_flower(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C and return the exit status. Raises `UsageError` for what must not, or cannot, be served."""
    options = flower_options(settings)
    connect(settings).close()  # an address that cannot be one is told here, in one line
    if find_spec("flower") is None:
        raise UsageError("Flower is not installed: install vitrina[flower]")
    configure_logging(settings)
    passwords = _passwords(settings)
    if passwords:
        # Flower reads this variable itself; on a command line every user of the machine could read it.
        os.environ["FLOWER_BASIC_AUTH"] = ",".join(passwords)
    app = make_app(settings)
    if settings.queues_in_redis:
        # Flower looks into a broker whose transport it knows by name: here ours goes by Redis' own.
        TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = app.conf.broker_transport
        app.conf.broker_transport = None
    _adapt(_prefix(settings))
    try:
        return int(app.start(["flower", *options]) or 0)
    except OSError as error:
        where = f"{settings.flower_address}:{settings.flower_port}"
        raise UsageError(
            f"cannot serve Flower at {where}: {error.strerror or error}: choose another VITRINA_FLOWER_PORT"
        ) from None


def flower_options(settings: Settings) -> list[str]:
    """Return Flower's options, none of them secret. Raises `UsageError` for an address that others can reach without a password."""
    if not (_passwords(settings) or _loopback(settings.flower_address)):
        msg = f"{settings.flower_address or 'every address'} can be reached from other machines, and nobody is asked for a password: "
        raise UsageError(f"{msg}set VITRINA_FLOWER_AUTH=user:password, or VITRINA_FLOWER_ADDRESS=127.0.0.1")
    options = [f"--address={settings.flower_address}", f"--port={settings.flower_port}"]
    options += [f"--max_tasks={settings.flower_max_tasks}", f"--url_prefix={_prefix(settings)}"]
    options.append("--tasks_columns=name,args,state,received,runtime,worker,uuid")  # the argument is the photo's key
    # An autoscaler's workers come and go, and what is remembered outlives them.
    options.append(f"--purge_offline_workers={GONE_SECONDS}")
    # A `flowerconfig.py` in the working folder would be run, and could open what is closed here.
    options.append(f"--conf={os.devnull}")
    options.append("--logging=none")  # its own would set our format and level aside
    if settings.flower_db:
        options += ["--persistent=True", f"--db={settings.flower_db}", f"--state_save_interval={SAVE_SECONDS * 1000}"]
    return options


def _prefix(settings: Settings) -> str:
    return settings.flower_url_prefix.strip("/")


def _adapt(prefix: str) -> None:
    """Make two things of Flower's ours.

    It shows all our queues: by itself it shows those of the workers that answered it in time, once, at its start. And it sends on who asks at
    the root, or for the prefix without its last slash: people, and Prometheus and probes, which then need not know the prefix.
    """
    from flower import app, command, views  # noqa: PLC0415 - an extra
    from tornado.web import RedirectHandler  # noqa: PLC0415 - comes with it

    class Ours(app.Flower):  # type: ignore[misc] # it ships no types
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            here = {"url": f"/{prefix}/{{0}}", "permanent": False}
            paths = (r"/(|metrics|healthcheck)", rf"/{prefix}()") if prefix else ()
            self.add_handlers(".*", [(path, RedirectHandler, here) for path in paths])

    command.Flower = Ours
    views.BaseHandler.get_active_queue_names = lambda _: sorted(QUEUES)


def _passwords(settings: Settings) -> list[str]:
    given = settings.flower_auth.get_secret_value() if settings.flower_auth else ""
    pairs = [pair for pair in given.split(",") if pair]
    # Flower compares ASCII alone. What was given is not quoted: it is a secret.
    if not all(pair.isascii() and all(pair.partition(":")[::2]) for pair in pairs):
        raise UsageError("VITRINA_FLOWER_AUTH must be user:password in ASCII; several with commas between them")
    return pairs


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
