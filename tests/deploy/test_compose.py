"""The Compose files and the Dockerfile, read as text: what they promise holds before any container starts. `make compose-test` starts them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.keys import STAGES
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENV_SH = ROOT / "deploy" / "compose" / "env.sh"
FILES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("docker-compose.yml", "docker-compose.gpu.yml", "deploy/compose/standins.yml")
}
MAIN, GPU, STANDINS = (yaml.safe_load(text) for text in FILES.values())
SERVICES: dict[str, dict[str, Any]] = MAIN["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("vitrina/")}
SECRETS = set(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE))
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([?-])([^}]*))?\}")
TARGET = re.compile(r"^FROM runtime AS (\S+)\n(.*?)(?=^FROM|\Z)", re.MULTILINE | re.DOTALL)
IMAGES = {name: body for name, body in TARGET.findall(DOCKERFILE) if name != "code"}
UNITS = {"b": 1, "m": 10**6, "g": 10**9, "k": 10**3}

every_service = pytest.mark.parametrize("name", SERVICES)


def plain(value: Any) -> str:
    """Fill in the defaults of what Compose would fill in."""
    return VARIABLE.sub(lambda found: found[3] if found[2] == "-" else "", str(value))


def seconds(value: str) -> float:
    """Read a duration of Compose's: a number and s or m."""
    number, unit = re.fullmatch(r"(\d+)([sm])", plain(value)).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def used() -> dict[str, set[tuple[str, str]]]:
    """Return every variable that the Compose files use, with how each use goes on: (`-`, default), (`?`, message) or nothing."""
    found: dict[str, set[tuple[str, str]]] = {}
    for text in FILES.values():
        bare = "\n".join(line.partition(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
        for name, kind, value in VARIABLE.findall(bare):
            found.setdefault(name, set()).add((kind, value))
    return found


@every_service
def test_nothing_runs_as_root(name: str) -> None:
    """A service names a user that is not root, or runs an image of ours whose last user is none."""
    if name in OURS:
        users = re.findall(r"^USER (\S+)", IMAGES[OURS[name]["build"]["target"]], re.MULTILINE)
        assert users[-1] == "10001:10001"
        assert "user" not in OURS[name]
    else:
        assert int(SERVICES[name]["user"].partition(":")[0]) > 0


@every_service
def test_a_container_is_contained(name: str) -> None:
    """The root file system is read-only, /tmp is memory of a limited size, and there are no capabilities to gain or keep."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service["mem_limit"]
    assert re.fullmatch(r"/tmp:size=(\d+[mg]|\$\{PRODUCER_TMP:-256m\}),mode=1777", service["tmpfs"][0])  # noqa: S108 - of a container
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "container_name"} & set(service)


@every_service
def test_only_this_machine_reaches_a_port(name: str) -> None:
    """What is published is published on loopback."""
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_a_stage_can_be_scaled() -> None:
    """Replicas do not fight for a name, an address, or a port of the machine."""
    for stage in STAGES:
        for service in (SERVICES[stage], GPU["services"][stage]):
            assert not {"container_name", "hostname", "ports", "networks"} & set(service)


def test_there_are_no_passwords_to_guess() -> None:
    """Every secret is empty in the example and has no default in the files: without one Compose says which command makes it."""
    assert {"BROKER_PASSWORD", "VITRINA_ACCESS_KEY_ID", "VITRINA_SECRET_ACCESS_KEY", "VITRINA_FLOWER_AUTH"} <= SECRETS
    for name in SECRETS:
        assert re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE)
        assert used()[name] == {("?", "sh deploy/compose/env.sh > .env")}
    suspects = re.compile(r"(PASSWORD|SECRET|TOKEN|AUTH|KEY)(?!S_)")
    for service in SERVICES.values():
        for variable, value in (service.get("environment") or {}).items():
            if suspects.search(variable) and variable != "GF_AUTH_ANONYMOUS_ENABLED":
                assert value is None or ":?" in value, variable


def test_no_secret_stands_in_a_command_line() -> None:
    """Commands and health checks, which every user of the machine can read, name no secret's value."""
    for service in SERVICES.values():
        for words in (service.get("command"), service.get("healthcheck", {}).get("test")):
            assert not SECRETS & {name for name, *_ in VARIABLE.findall(str(words))}


def test_passwords_are_made_anew() -> None:
    """`env.sh` fills in every secret with one of its own, which needs no quoting in an address, and changes nothing else."""
    first, second = (
        subprocess.run(["sh", ENV_SH], capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    values = [line.partition("=")[2] for line in (first + second).splitlines() if line.partition("=")[0] in SECRETS]
    assert len(values) == len(set(values)) == 2 * len(SECRETS)
    assert all(re.fullmatch(r"(vitrina:)?[0-9a-f]{48}", value) for value in values)
    assert re.sub(r"^([A-Z_]+=)\S+$", r"\1", first, flags=re.MULTILINE) == EXAMPLE


def test_the_example_tells_all_settings_and_their_defaults() -> None:
    """What can be set is in .env.example with the value it has when it is not; nothing else is in it."""
    told = dict(re.findall(r"^# ([A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    handed = {
        name for each in SERVICES.values() for name, value in (each.get("environment") or {}).items() if value is None
    }
    assert set(told) == (set(used()) | handed) - SECRETS - {"HF_TOKEN"}
    fields = Settings.model_fields
    for name, value in told.items():
        defaults = {default for _, default in used().get(name, ())}
        if defaults:
            assert value in defaults, name
        elif not name.startswith("OTEL_"):  # their defaults are OpenTelemetry's
            default = fields[name.removeprefix("VITRINA_").lower()].default
            assert default is None or value == str(default), (
                name
            )  # None: it depends, and the example says what is usual


FIXED = {
    "VITRINA_PROGRESS": "progress lies in the broker of the file",
    "VITRINA_HEARTBEAT_FILE": "the health check asks over HTTP",
    "VITRINA_PRELOAD": "RECIPE says it",
    "VITRINA_MODELS_DIR": "the volume lies where the image has it",
    "VITRINA_FLOWER_PORT": "FLOWER_PORT is where the machine shows it",
    "VITRINA_GPU_CLAIMS": "a volume of docker-compose.gpu.yml",
}
"""Settings that are not for `.env`, and why."""


def test_every_setting_reaches_the_containers() -> None:
    """What settings there are, and the variables that the operator's page names besides, go on from .env or have their value in the file."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = {f"VITRINA_{name.upper()}" for name in Settings.model_fields} | set(
        re.findall(r"\b(?:VITRINA|OTEL)_[A-Z_]*[A-Z]\b", page)
    )
    handed = {name for service in OURS.values() for name in service["environment"]}
    assert named - handed == set(FIXED)


def test_a_setting_reaches_every_service_that_heeds_it() -> None:
    """Logs are wanted of all alike, and Flower remembers its tasks in a volume."""
    for name in (*STAGES, "keeper", "producer", "flower"):
        assert {"VITRINA_BROKER", "VITRINA_LOG_FORMAT", "VITRINA_LOG_LEVEL"} <= set(OURS[name]["environment"])
    (volume,) = SERVICES["flower"]["volumes"]
    kept = Path(plain(SERVICES["flower"]["environment"]["VITRINA_FLOWER_DB"]))
    assert volume == f"flower:{kept.parent}"
    assert re.search(rf"install --directory --owner vitrina .* {kept.parent} ", DOCKERFILE)


def test_every_setting_exists() -> None:
    """Each VITRINA_ variable of the files is a field of the settings object."""
    names = set(
        re.findall(r"\bVITRINA_([A-Z0-9_]+)\b", EXAMPLE.replace("VITRINA_*", "") + "".join(FILES.values()) + DOCKERFILE)
    )
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_a_worker_may_finish_what_it_has_begun() -> None:
    """Docker waits for longer than a batch and an upload may take, and for every service longer than its own default."""
    settings = SERVICES["segmentation"]["environment"]
    longest = int(plain(settings["VITRINA_BATCH_DEADLINE"])) + int(plain(settings["VITRINA_S3_READ_TIMEOUT"]))
    for stage in STAGES:
        assert seconds(SERVICES[stage]["stop_grace_period"]) > longest
    for name, service in SERVICES.items():
        assert name == "models" or seconds(service["stop_grace_period"]) > 10, name


@every_service
def test_a_service_tells_whether_it_is_well(name: str) -> None:
    """What runs for long has a health check in the file or in its image; what ends does not."""
    check = SERVICES[name].get("healthcheck")
    if name in {"models", "producer"}:
        assert check in ({"disable": True}, None)
    elif name in STAGES:
        assert "HEALTHCHECK" in IMAGES[SERVICES[name]["build"]["target"]]
    else:
        assert check
        assert check["test"][0] == "CMD"


def test_a_worker_waits_for_what_it_needs() -> None:
    """Broker and S3 server are well, and the models are there, before a worker starts."""
    for stage in STAGES:
        needed = {name: each["condition"] for name, each in SERVICES[stage]["depends_on"].items()}
        assert needed == {
            "broker": "service_healthy",
            "s3": "service_healthy",
            "models": "service_completed_successfully",
        }
        assert SERVICES[stage]["volumes"] == ["models:/models:ro"]
    assert SERVICES["models"]["volumes"] == ["models:/models"]


def test_the_broker_forgets_nothing() -> None:
    """It writes what it holds to a volume, asks for a password, refuses what it has no room for, and its container has room for more."""
    broker = SERVICES["broker"]
    lines = plain(broker["command"][-1])
    for line in ('requirepass "$$REDISCLI_AUTH"', "appendonly yes", "maxmemory-policy noeviction"):
        assert line in lines
    assert broker["volumes"] == ["broker:/data"]
    held = int(re.search(r"maxmemory (\d+)mb", lines)[1])  # type: ignore[index]
    limit = plain(broker["mem_limit"])
    assert int(limit[:-1]) * UNITS[limit[-1]] > 2 * held * UNITS["m"]


def test_prometheus_finds_what_runs_here() -> None:
    """Every name and port that it asks is a service's, the path is the usual one everywhere, and every file that is mounted is there."""
    config = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text(encoding="utf-8"))
    asked = [each for job in config["scrape_configs"] for each in job["dns_sd_configs"]]
    ports = {name: str(each["port"]) for each in asked for name in each["names"]}
    assert ports.pop("flower") == plain(SERVICES["flower"]["ports"][0]).rpartition(":")[2]
    assert ports == {name: SERVICES[name]["environment"]["VITRINA_METRICS_PORT"] for name in (*STAGES, "keeper")}
    assert not any("metrics_path" in job for job in config["scrape_configs"])
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            assert not volume.startswith("./") or (ROOT / volume.partition(":")[0]).exists()


def test_a_gpu_is_asked_for_and_nothing_is_loosened() -> None:
    """The GPU file shows all GPUs to every worker, which takes one, and touches neither users nor the read-only root."""
    for stage in STAGES:
        service = GPU["services"][stage]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["capabilities"], device["count"]) == (["gpu"], "all")
        assert service["volumes"] == [f"gpus:{service['environment']['VITRINA_GPU_CLAIMS']}"]
        assert plain(service["command"][-1]) == "production"
    assert set(GPU["services"]) == {*STAGES, "models"}
    allowed = {"image", "build", "command", "tmpfs", "mem_limit", "deploy", "environment", "volumes"}
    assert all(set(service) <= allowed for service in GPU["services"].values())


def test_stand_ins_change_images_and_nothing_else() -> None:
    """They differ in where broker, S3 server and Prometheus come from, the first two at the versions that everything else is tested with."""
    assert set(STANDINS["services"]) == {"broker", "s3", "prometheus"}
    assert all(set(service) == {"image", "build"} for service in STANDINS["services"].values())
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in (ROOT / "deploy/compose/standins/requirements.txt").read_text(encoding="utf-8").splitlines():
        assert line.replace("[s3,server]", "") in pinned


def test_images_are_pinned() -> None:
    """No image is taken by a tag that moves to another release."""
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.search(r":v?\d+\.\d+", plain(service["image"])), name
    assert re.search(r"^ARG BASE_IMAGE=\S+:\d+\.\d+\S*$", DOCKERFILE, re.MULTILINE)


def test_images_say_what_they_are() -> None:
    """Each has the labels by which registries and scanners know it, and the version is the package's."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.search(rf"^ARG VERSION={re.escape(package['version'])}$", DOCKERFILE, re.MULTILINE)
    for body in IMAGES.values():
        labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', body))
        assert labels.pop("title").startswith("Vitrina ")
        assert labels.pop("description")
        assert labels.pop("licenses") == package["license"]
        assert labels == {name: f"${name.upper()}" for name in ("version", "revision", "source")}
        assert "ARG VERSION REVISION SOURCE\n" in body


def test_a_change_of_code_installs_nothing() -> None:
    """In every image the code comes after the dependencies, which see nothing of it, and its user comes last."""
    assert set(IMAGES) == {"producer", "worker-cpu", "worker-gpu"}
    for body in IMAGES.values():
        installed, code, user = (body.index(text) for text in ("RUN sh /build/install.sh", "COPY --from=code", "USER "))
        assert installed < code < user
        assert body.count("COPY") == 2
        assert "COPY pyproject.toml constraints.txt deploy/install.sh /build/" in body


def test_images_hold_code_and_no_models() -> None:
    """What Docker is sent are the files that the Dockerfile copies: no catalogue, no environment, no weights."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"}
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    assert allowed == copied
    assert not re.search(r"^(RUN|COPY|ADD).*(models fetch|\.onnx|\.safetensors|\.pth)", DOCKERFILE, re.MULTILINE)
