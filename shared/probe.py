"""What a supervisor asks a worker or keeper over HTTP: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import logging
import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app

from shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing: probes come every few seconds."""


class Probe:
    """Serves from a thread of its own until the process ends.

    While one call holds the interpreter's lock no thread answers: give probes a timeout of some seconds and several tries.
    """

    def __init__(
        self,
        port: int,
        *,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Listen at `port`, on all addresses. Raises `UsageError`."""
        self._answers = {"/healthz": alive, "/readyz": ready}
        self._metrics = make_wsgi_app(registry)
        try:
            self._server = make_server("", port, self._answer, server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            msg = f"cannot serve metrics at port {port} ({error.strerror}): set VITRINA_METRICS_PORT"
            raise UsageError(msg) from None
        threading.Thread(target=self._server.serve_forever, name="probe", daemon=True).start()
        log.info("metrics and probes at port %s", port, extra={"action": "metrics"})

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        asked = self._answers.get(environ["PATH_INFO"])
        if asked is None:
            return self._metrics(environ, start_response)  # type: ignore[no-any-return] # as WSGI has it
        well = asked()
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if well else b"no\n"]
