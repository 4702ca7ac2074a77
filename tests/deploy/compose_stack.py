"""docker-compose.yml as a test runs it: under a project name, ports and passwords of its own, and gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

ROOT = Path(__file__).parents[2]
STANDINS = ROOT / "deploy" / "compose" / "standins.yml"
GPU = ROOT / "docker-compose.gpu.yml"
BUILD_SECONDS = 3600
"""torch and its libraries, over a slow line."""
START_SECONDS = 600
COMMAND_SECONDS = 300
OURS_TO_PASS = ("BASE_IMAGE", "BROKER_IMAGE", "CPU_TORCH_INDEX", "S3_IMAGE")
"""What a machine may need to build at all; every other setting is the test's."""


class StackError(Exception):
    """A command of Docker failed or took too long; the message is the end of what it said."""


def say(text: str) -> None:
    """Tell how far it is; standard output is for the result."""
    sys.stderr.write(f"compose-test: {text}\n")
    sys.stderr.flush()


def missing() -> str | None:
    """Say what is not there to run a Compose project, or return None."""
    for words, what in ((["docker", "version"], "a Docker engine"), (["docker", "compose", "version"], "Compose 2")):
        if not shutil.which("docker") or subprocess.run(words, capture_output=True, check=False).returncode:
            return f"{what} does not answer"
    return None


def docker(*words: str | Path, seconds: float = COMMAND_SECONDS, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and return its standard output. Raises `StackError`."""
    command = ["docker", *map(str, words)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=environment, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"{' '.join(command)} took longer than {seconds:.0f} s") from None
    if done.returncode:
        raise StackError(f"{' '.join(command)}: status {done.returncode}: {(done.stderr + done.stdout)[-2000:]}")
    return done.stdout


def until(what: Callable[[], bool], description: str, *, seconds: float) -> None:
    """Wait for something to come true. Raises `StackError`."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise StackError(f"no {description} after {seconds:.0f} s")
        time.sleep(0.5)


def free_port() -> int:
    """Return a loopback port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """One Compose project; leaving the `with` block removes its containers, networks and volumes."""

    def __init__(self, folder: Path) -> None:
        """Write the settings of a new project into `folder`."""
        self.project = f"vitrina-test-{uuid.uuid4().hex[:8]}"
        self.settings = {f"{name}_PORT": str(free_port()) for name in ("S3", "FLOWER", "PROMETHEUS", "GRAFANA")}
        self.has_grafana = False
        self._file = folder / "compose.env"
        written = subprocess.run(
            ["sh", ROOT / "deploy" / "compose" / "env.sh"], capture_output=True, text=True, check=True
        ).stdout
        for name, value in self.settings.items():
            written += f"{name}={value}\n"
        self._file.write_text(written, encoding="utf-8")
        for line in written.splitlines():
            name, is_setting, value = line.partition("=")
            if is_setting and not name.startswith("#"):
                self.settings[name] = value
        self._files = [ROOT / "docker-compose.yml"]
        # A setting of the caller's shell would win over the file.
        known = (ROOT / ".env.example").read_text(encoding="utf-8")
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if f"{name}=" not in known or name in OURS_TO_PASS or name == "PATH"
        }

    def choose_images(self) -> None:
        """Take what is not ours from its registry, or the stand-ins where it does not answer; Grafana has none."""
        try:
            self.compose("pull", "--quiet", "broker", "s3", "prometheus", "grafana", seconds=START_SECONDS)
            self.has_grafana = True
        except StackError:
            say("the images of broker, S3 server and Prometheus cannot be pulled: using deploy/compose/standins.yml")
            self._files.append(STANDINS)

    def config(self, *files: Path) -> dict[str, Any]:
        """Return the services as Compose understands its files, with further ones laid over them."""
        laid = [part for file in files for part in ("--file", file)]
        written = self.compose(*laid, "--profile", "monitoring", "config", "--format", "json")
        return dict(json.loads(written)["services"])

    def build(self) -> None:
        """Build each image once, although several services name it."""
        services = self.config()
        once = {service["image"]: name for name, service in services.items() if "build" in service}
        # One after the other: the classic builder makes what two of them share twice, and finds one of both again.
        for service in once.values():
            self.compose("build", service, seconds=BUILD_SECONDS)

    def compose(self, *words: str | Path, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command of Compose on this project. Raises `StackError`."""
        files = [part for file in self._files for part in ("--file", file)]
        words = ("compose", "--env-file", self._file, "--project-name", self.project, *files, *words)
        return docker(*words, seconds=seconds, environment=self._environment)

    def producer(self, *words: str, volume: str | None = None) -> str:
        """Run a command of Vitrina's in a container of its own, as the documentation says, and return its standard output."""
        mounted = ["--volume", volume] if volume else []
        return self.compose("run", "--rm", "-T", *mounted, "producer", *words)

    def status(self, job: str) -> dict[str, Any]:
        """Return how far a job is, asked from the keeper's container."""
        # Without the check on its status: 1 stands for failed items, which are ours to count.
        asked = self.compose("exec", "-T", "keeper", "sh", "-c", 'vitrina status "$0" --json || true', job)
        return dict(json.loads(asked.strip().splitlines()[-1]))

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        return self.compose("ps", "--quiet", "--status", "running", service).split()

    def scale(self, service: str, number: int) -> None:
        """Have so many containers of a service, and leave all others as they are. Those that are starting are not waited for."""
        self.compose(
            "up", "--detach", "--no-deps", "--no-recreate", "--no-build", "--scale", f"{service}={number}", service
        )

    def up(self, *services: str) -> None:
        """Start services, or all but the monitoring, and wait until they are well."""
        wait = ("--wait", "--wait-timeout", str(START_SECONDS))
        self.compose("up", "--detach", "--no-recreate", *wait, *services, seconds=START_SECONDS + 60)

    def url(self, service: str, path: str = "") -> str:
        """Return where this machine reaches a service."""
        return f"http://127.0.0.1:{self.settings[f'{service.upper()}_PORT']}{path}"

    def logs(self, lines: int = 15) -> str:
        """Return the end of every service's log."""
        return self.compose("logs", "--no-color", "--tail", str(lines))

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell what the services said when something failed, and remove everything."""
        if isinstance(error, StackError):
            try:
                say(f"the logs end:\n{self.logs()}")
            except StackError as also:
                say(f"there are no logs: {also}")
        say("removing containers, networks and volumes")
        self.compose(
            *(
                "--profile",
                "producer",
                "--profile",
                "monitoring",
                "down",
                "--volumes",
                "--remove-orphans",
                "--timeout",
                "30",
            ),
            seconds=START_SECONDS,
        )


def image_megabytes(image: str) -> float:
    """Return what an image adds to its base, in millions of bytes: the layers of our own Dockerfile."""
    rows = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image).splitlines()
    total = 0
    for row in rows:  # the newest first
        size, _, made_by = row.partition("\t")
        total += int(size)
        if "--no-install-recommends tini" in made_by:
            return total / 1_000_000
    raise StackError(f"{image} is not from our Dockerfile")


def rebuild_seconds(stack: Stack, folder: Path, services: Sequence[str]) -> float:
    """Return how long the services' images take to build after a change of code, made in a copy of the tree. The images are removed."""
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "LICENSE", "deploy/install.sh"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in ("producer", "shared", "workers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "shared" / "keys.py").open("a", encoding="utf-8") as code:
        code.write(f"\n# {uuid.uuid4()}\n")
    tags = [f"{stack.project}:{service}" for service in services]
    changed = folder / "changed.json"  # which is YAML
    pairs = zip(services, tags, strict=True)
    changed.write_text(
        json.dumps({"services": {name: {"image": tag, "build": {"context": str(folder)}} for name, tag in pairs}})
    )
    began = time.monotonic()
    try:
        stack.compose("--file", changed, "build", *services, seconds=BUILD_SECONDS)
        return time.monotonic() - began
    finally:
        docker("image", "rm", "--force", *tags)
