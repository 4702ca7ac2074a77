"""A storage that errs, goes away and is slow, behind a proxy that injects faults."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from lab import Lab, Outcome
from pydantic import SecretStr

from producer.embedded import S3Server
from shared.settings import Settings
from shared.storage import open_storage
from shared.storage.s3 import S3Storage

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("500", "503", "reset", "unanswered", "truncated", "flipped", "silent")
"""Server error, throttling, a connection reset before and one after the server did its work, half a body, a wrong byte in it, no answer in time."""


class Faults:
    """What goes wrong: a `share` of the requests in each of the ways, all while it is `down`, writes while it is `read_only`, and each is held for `delay` seconds."""

    def __init__(self, target: str, patience: float, seed: int) -> None:
        self.share = 0.0
        self.down = False
        self.read_only = False
        self.delay = 0.0
        self.target = urlsplit(target)
        self.patience = patience
        self.counted = dict.fromkeys(KINDS, 0)
        self._chance = random.Random(seed)  # noqa: S311 - a repeatable course of events

    def next(self) -> str:
        """Return what goes wrong with the next request; empty for nothing."""
        kind = "503" if self.down else ""
        if not self.down and self._chance.random() < self.share * len(KINDS):
            kind = self._chance.choice(KINDS)
        if kind:
            self.counted[kind] += 1
        return kind


class Handler(BaseHTTPRequestHandler):
    """Forwards one connection's requests, or not."""

    protocol_version = "HTTP/1.1"
    faults: Faults

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.faults.delay)
        kind = self.faults.next()
        if self.faults.read_only and self.command == "PUT":
            self.reply(403, [], b"<Error><Code>AccessDenied</Code></Error>")
        elif kind == "silent":
            time.sleep(self.faults.patience * 1.5)
            self.close_connection = True
        elif kind == "reset":
            self.reset()
        elif kind in {"500", "503"}:
            self.reply(int(kind), [], b"<Error><Code>SlowDown</Code></Error>")
        else:
            # Some faults come before the server did anything, these after.
            status, headers, data = self.forward(body)
            if kind == "unanswered":
                self.reset()
            elif kind == "flipped" and data:
                self.reply(status, headers, data[:-1] + bytes([data[-1] ^ 1]))
            else:
                self.reply(status, headers, data, cut=kind == "truncated")

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815 - the names of HTTP

    def reset(self) -> None:
        """End the connection as a crash does: by RST, without an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(str(self.faults.target.hostname), self.faults.target.port, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        head = self.command == "HEAD"
        dropped = {"transfer-encoding", "connection"} | (set() if head else {"content-length"})
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        if not head or not headers:
            self.send_header("Content-Length", "0" if head else str(len(body)))
        self.end_headers()
        if not head:
            with suppress(OSError):
                self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class FaultyS3:
    """Stands before an S3 server."""

    def __init__(self, target: str, *, patience: float, seed: int = 1) -> None:
        """`patience` is how long its clients wait for an answer: a silent one takes longer."""
        self.faults = Faults(target, patience, seed)
        handler = type("Handler", (Handler,), {"faults": self.faults})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # broken connections are the point
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty s3")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def storage(folder: Path, *, items: int = 120, share: float = 0.05, outage: float = 60.0) -> Outcome:
    """Errors of each kind in a third of the job, then an outage, then slowness; the job waits and goes on."""
    with S3Server(folder / "server") as server, FaultyS3(server.url, patience=2) as faulty:
        given: dict[str, Any] = {
            "endpoint_url": faulty.url,
            "access_key_id": SecretStr("key"),
            "secret_access_key": SecretStr("secret"),
            "s3_read_timeout": 2,
            "s3_connect_timeout": 2,
        }
        with Lab(folder, retry_base=0.2, **given) as lab:
            S3Storage.from_settings("s3://shop", Settings(**given)).ensure_bucket()
            photos, out = (open_storage(f"s3://shop/{name}", lab.settings) for name in ("photos", "out"))
            for number in range(items):
                photos.put(f"{number:05d}", b"photo %d" % number)
            session = lab.session(source=photos, out=out)
            faulty.faults.share = share
            down = up = 0.0
            through = 0
            recovered: list[float] = []

            def act() -> None:
                nonlocal down, up, through
                done = session.progress.counts().done
                if not down and done >= items // 3:
                    faulty.faults.share, faulty.faults.down, down = 0.0, True, time.monotonic()
                elif down and not up and time.monotonic() > down + outage:
                    faulty.faults.down, faulty.faults.delay, up, through = False, 0.2, time.monotonic(), done
                elif up and not recovered and done > through:
                    recovered.append(time.monotonic() - up)

            _feed_through_an_outage(lab, session, act, seconds=180 + 3 * outage)
            faulty.faults.share = faulty.faults.delay = 0.0
            outcome = lab.audit(session)
            outcome.slowest_recovery_seconds = round(max(recovered, default=0.0), 1)
            outcome.also = {f"faults_{kind}": number for kind, number in faulty.faults.counted.items()}
            outcome.expect("the outage came and went", up)
            outcome.expect("every kind of fault was met", not share or all(faulty.faults.counted.values()))
            outcome.expect("nothing failed for an outage that ended", outcome.failed == 0)
            return outcome


def read_only(folder: Path, *, items: int = 120, seconds: float = 20.0) -> Outcome:
    """Its owner forbids writing, and allows it again; no photo fails for that."""
    with S3Server(folder / "server") as server, FaultyS3(server.url, patience=2) as faulty:
        keys = {"access_key_id": SecretStr("key"), "secret_access_key": SecretStr("secret")}
        with Lab(folder, endpoint_url=faulty.url, **keys) as lab:
            S3Storage.from_settings("s3://shop", lab.settings).ensure_bucket()
            photos, out = (open_storage(f"s3://shop/{name}", lab.settings) for name in ("photos", "out"))
            for number in range(items):
                photos.put(f"{number:05d}", b"slow:0.1")
            session = lab.session(source=photos, out=out)
            refusing = through = 0.0

            def act() -> None:
                nonlocal refusing, through
                done = session.progress.counts().done
                if not refusing and session.progress.counts().listed and done >= items // 4:
                    faulty.faults.read_only, refusing = True, time.monotonic()
                elif faulty.faults.read_only and time.monotonic() > refusing + seconds:
                    faulty.faults.read_only, through = False, done

            lab.run(session, act, seconds=180 + 3 * seconds)
            outcome = lab.audit(session)
            outcome.expect("photos were left when it took them again", refusing and through < items)
            outcome.expect("nothing failed for what its owner mended", outcome.failed == 0)
            return outcome


def _feed_through_an_outage(lab: Lab, session: Any, act: Any, *, seconds: float) -> None:
    """Run a job whose producer, too, may find the storage away: it is started again, as a person or a scheduler would."""
    from shared.errors import StorageError  # noqa: PLC0415 - used here alone

    until = time.monotonic() + seconds
    while True:
        try:
            lab.run(session, act, seconds=until - time.monotonic())
        except StorageError:
            time.sleep(1)
            lab.supervise()
            act()
        else:
            return
