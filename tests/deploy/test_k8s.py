"""What an operator can rely on of the manifests in `deploy/k8s`: rendered by kustomize, checked against the schemas of Kubernetes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import redis
import typer
from made_manifests import (
    BOTH,
    JOBS,
    K8S,
    OVERLAYS,
    arguments,
    environment,
    every_pod,
    named,
    pods,
    policies,
    ports,
    rendered,
    secret_keys,
    selects,
    workers,
)
from pydantic import SecretStr

from producer.cli import app
from producer.embedded import _valkey_server, free_port
from shared.connection import connect
from shared.keys import STAGES
from shared.probe import Probe
from shared.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

KUBERNETES = "1.33"
"""The oldest release these are for."""
IMAGES = {"vitrina/producer", "vitrina/worker-cpu", "vitrina/worker-gpu"}
SECRET = re.compile(r"BROKER|PASSWORD|SECRET|ACCESS_KEY|AUTH|TOKEN")


@pytest.mark.parametrize("folder", BOTH)
def test_every_object_is_valid(folder: str) -> None:
    """No field is misspelt or of a wrong type; KEDA's own kinds are looked at in test_autoscale.py."""
    for each in rendered(folder):
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_no_container_can_do_more_than_its_work() -> None:
    """None is root, can become root, or writes anywhere but to its volumes; all are bounded."""
    for pod in every_pod():
        around = pod.spec["securityContext"]
        assert around["runAsNonRoot"] is True, pod
        assert around["runAsUser"] > 0, pod
        assert around["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec), pod
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, pod
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), pod
            assert "memory" in container["resources"]["limits"], pod
        kinds = (
            {kind for volume in pod.spec["volumes"] for kind in volume if kind != "name"}
            if "volumes" in pod.spec
            else set()
        )
        assert kinds <= {"emptyDir", "persistentVolumeClaim"}, pod


def test_no_pod_can_speak_to_the_cluster() -> None:
    """Neither a pod nor its account brings a token."""
    for pod in every_pod():
        assert pod.spec["automountServiceAccountToken"] is False, pod
        assert pod.spec["serviceAccountName"] == "vitrina", pod
    for folder in OVERLAYS:
        assert named(rendered(folder), "ServiceAccount")["vitrina"]["automountServiceAccountToken"] is False


def test_the_namespace_lets_in_nothing_that_is_less_careful() -> None:
    """Kubernetes itself refuses a pod that breaks the rules above."""
    for folder in OVERLAYS:
        labels = named(rendered(folder), "Namespace")["vitrina"]["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_secret_is_written_down() -> None:
    """Secrets are referred to; no manifest has one, and no plain variable is one."""
    for folder in BOTH:
        assert not named(rendered(folder), "Secret")
        for config in named(rendered(folder), "ConfigMap").values():
            assert not [name for name in config["data"] if SECRET.search(name)]
        for pod in pods(folder):
            for container in pod.containers:
                plain = [each["name"] for each in container.get("env", []) if "value" in each]
                assert not [name for name in plain if SECRET.search(name)], pod


def test_every_setting_exists_and_reads_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt VITRINA_ variable would be passed over in silence."""
    known = {f"VITRINA_{name.upper()}" for name in Settings.model_fields}
    for pod in every_pod():
        for container in pod.containers:
            names = {each["name"] for each in container.get("env", [])}
            plain = environment(container, rendered(pod.where))
            ours = {name for name in names | set(plain) if name.startswith("VITRINA_")}
            assert ours <= known, f"{pod}: {ours - known}"
            with monkeypatch.context() as patch:
                for name, value in plain.items():
                    patch.setenv(name, value)
                settings = Settings()
            offered = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            assert offered.get("metrics", settings.metrics_port) == settings.metrics_port, pod


def test_every_command_exists_with_its_options() -> None:
    """What the containers are told to run is what the command line takes."""
    group: Any = typer.main.get_command(app)
    for pod in every_pod():
        for container in pod.containers:
            if container["image"].partition(":")[0] not in IMAGES:
                continue
            command, words = group, arguments(container, rendered(pod.where))
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert not hasattr(command, "commands"), f"{pod}: no command {words[:1]}"
            command.make_context("vitrina", words)


def test_probes_ask_what_is_answered() -> None:
    """A probe of a route that is none would get the metrics, and a 200, for ever."""
    port = free_port()
    probe = Probe(port, alive=lambda: True, ready=lambda: True)
    try:
        for pod in every_pod():
            asked = [each for each in pod.spec["containers"] if pod.component in {"worker", "keeper"}]
            for container in asked:
                for kind in (
                    "readinessProbe",
                    "livenessProbe",
                    *(["startupProbe"] if pod.component == "worker" else []),
                ):
                    get = container[kind]["httpGet"]
                    assert get["port"] == "metrics", pod
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{get['path']}", timeout=5) as answer:
                        assert answer.read() == b"ok\n", pod
    finally:
        probe.close()


def test_a_worker_may_take_its_time_to_load() -> None:
    """It is asked whether it is alive, which it is while it loads and while no broker answers, and never restarted for not being ready."""
    for folder in OVERLAYS:
        for stage, pod in workers(folder).items():
            probe = pod.spec["containers"][0]["startupProbe"]
            assert probe["httpGet"]["path"] == "/healthz", stage
            assert probe["periodSeconds"] * probe["failureThreshold"] >= 600, stage


def test_a_worker_that_is_told_to_stop_can_finish() -> None:
    """It is given longer than its longest batch and an upload together."""
    for folder in OVERLAYS:
        found = workers(folder)
        assert set(found) == set(STAGES)
        for pod in found.values():
            settings = environment(pod.spec["containers"][0], rendered(folder))
            work = float(settings["VITRINA_BATCH_DEADLINE"]) + float(settings["VITRINA_S3_READ_TIMEOUT"])
            assert pod.spec["terminationGracePeriodSeconds"] > work, pod


def test_nodes_are_emptied_one_pod_of_a_kind_at_a_time() -> None:
    """Each budget fits the pods of one owner, and every worker and keeper has one."""
    for folder in OVERLAYS:
        budgets = named(rendered(folder), "PodDisruptionBudget").values()
        for pod in pods(folder):
            fitting = [each["spec"] for each in budgets if selects(each["spec"]["selector"], pod.labels)]
            assert len(fitting) == (pod.component != "flower"), pod
            assert all(spec["maxUnavailable"] == 1 for spec in fitting), pod
        for each in budgets:
            assert len([pod for pod in pods(folder) if selects(each["spec"]["selector"], pod.labels)]) == 1


def test_workers_of_a_stage_are_spread_over_nodes() -> None:
    """One node's end leaves others; where there is but one node, they run all the same."""
    for folder in OVERLAYS:
        for stage, pod in workers(folder).items():
            (spread,) = pod.spec["topologySpreadConstraints"]
            assert selects(spread["labelSelector"], pod.labels), stage
            assert not selects(spread["labelSelector"], {**pod.labels, "app.kubernetes.io/name": "other"}), stage
            assert spread["whenUnsatisfiable"] == "ScheduleAnyway", stage


@pytest.mark.parametrize("folder", OVERLAYS)
def test_nobody_speaks_unless_a_rule_says_so(folder: str) -> None:
    """Every pod, those of the jobs too, is closed in both directions, and reaches what its work needs and nothing else."""
    broker, storage, names = {6379, 6380}, {443}, {53}
    reach = {
        "worker": broker | storage | names,
        "keeper": broker | storage | names,
        "producer": broker | storage | names,
        "flower": broker | names,
        "models": storage | names,  # the hub and the package index
        "broker": names,
    }
    reached = {"worker": {"metrics"}, "keeper": {"metrics"}, "flower": {"http"}, "broker": {"redis"}}
    objects = rendered(folder)
    for pod in [*pods(folder), *(pod for job in JOBS for pod in pods(job))]:
        for way, may in (("Egress", reach[pod.component]), ("Ingress", reached.get(pod.component, set()))):
            assert any(not spec.get(way.lower()) for spec in policies(objects, pod.labels, way)), (
                f"{pod} is open: {way}"
            )
            assert ports(objects, pod.labels, way) == may, f"{pod}: {way}"


def test_no_address_rule_opens_the_clouds_metadata() -> None:
    """A worker that was talked into asking for its node's rights gets no answer."""
    for folder in OVERLAYS:
        text = json.dumps(list(named(rendered(folder), "NetworkPolicy").values()))
        for block in re.findall(r'"ipBlock": (\{.*?\})', text):
            wide = json.loads(block)
            if wide["cidr"] in {"0.0.0.0/0", "::/0"}:
                assert wide["except"] in (["169.254.169.254/32"], ["fd00:ec2::254/128"])


def test_a_gpu_worker_has_a_gpu_of_its_own() -> None:
    """One each, on nodes that are kept for them; on processors none asks for one."""
    for folder in OVERLAYS:
        for pod in workers(folder).values():
            (container,) = pod.spec["containers"]
            gpus = container["resources"]["limits"].get("nvidia.com/gpu")
            keys = [each["key"] for each in pod.spec.get("tolerations", [])]
            cpu = folder == "overlays/cpu"
            assert (gpus, keys) == ((None, []) if cpu else ("1", ["nvidia.com/gpu"])), pod
            assert container["image"].startswith("vitrina/worker-cpu:" if cpu else "vitrina/worker-gpu:"), pod
            # How many photos it works on at once follows from its model: a number here would be wrong for some.
            set_here = environment(container, rendered(folder))
            assert not {"VITRINA_THREADS", "VITRINA_MAX_BATCH"} & (set() if cpu else set_here.keys()), pod


def test_images_are_ours_with_a_version() -> None:
    """`latest` would change under a running installation."""
    for pod in every_pod():
        for container in pod.containers:
            name, _, tag = container["image"].partition(":")
            assert name in IMAGES | {"valkey/valkey"}, pod
            assert tag not in {"", "latest"}, pod


def test_only_the_fetching_job_writes_models() -> None:
    """Workers read the weights from a volume that they cannot change, where the settings say they lie."""
    for pod in every_pod():
        for container in pod.containers:
            mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
            env = environment(container, rendered(pod.where))
            if pod.component in {"worker", "models"}:
                mount = mounts[env["VITRINA_MODELS_DIR"]]
                assert mount.get("readOnly", False) is (pod.component == "worker"), pod
            if pod.component != "broker":
                assert env["HOME"] in mounts, f"{pod}: the root is read-only"
    for folder in OVERLAYS:
        assert "vitrina-models" in named(rendered(folder), "PersistentVolumeClaim")


def test_services_and_jobs_share_one_configuration() -> None:
    """A value is set once: the maps of the jobs are those of the services, by name."""
    maps = {name: each["data"] for name, each in named(rendered("overlays/gpu"), "ConfigMap").items()}
    for folder in BOTH:
        for name, each in named(rendered(folder), "ConfigMap").items():
            assert maps[name] == each["data"], folder


def run_secrets(folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run the example with a `kubectl` that notes what it is given."""
    fake = folder / "kubectl"
    fake.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >>"$NOTES"\nprintf "\\n" >>"$NOTES"\n')
    fake.chmod(0o755)
    notes = folder / "notes"
    notes.touch()
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(notes), **variables}
    done = subprocess.run(
        ["sh", K8S / "secrets.example.sh"], env=env, capture_output=True, text=True, check=False, cwd=folder
    )
    return done, [line.split("\0")[:-1] for line in notes.read_text().splitlines()]


def test_the_example_makes_every_secret_that_is_referred_to(tmp_path: Path) -> None:
    """All keys are there, and no value is on a command line."""
    values = {"BROKER_PASSWORD": "p4ss", "S3_KEY_ID": "k3y", "S3_SECRET": "s3cret", "FLOWER_AUTH": "n4me:word"}
    values |= {"HF_TOKEN": "hf_t0ken"}
    done, calls = run_secrets(tmp_path, BROKER_HOST="queue:6379", **values)
    assert done.returncode == 0, done.stderr
    made = {
        (call[call.index("generic") + 1], word.removeprefix("--from-file=").partition("=")[0])
        for call in calls
        for word in call
        if word.startswith("--from-file=")
    }
    for folder in BOTH:
        assert set(secret_keys(rendered(folder))) <= made, folder
    assert {f"VITRINA_{name.upper()}" for name in ("access_key_id", "secret_access_key")} <= {key for _, key in made}
    assert not [value for value in values.values() if value in json.dumps(calls)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"BROKER_PASSWORD": "p4ss"}, "set FLOWER_AUTH"),
        ({"BROKER_PASSWORD": "p@ss/word", "FLOWER_AUTH": "n4me:word"}, "goes into an address"),
        ({"BROKER_PASSWORD": "p4ss", "FLOWER_AUTH": "n4me:word", "S3_KEY_ID": "k3y"}, "set S3_SECRET"),
        ({"BROKER_PASSWORD": "p4ss", "FLOWER_AUTH": "n4me:word", "BROKER_SCHEME": "http"}, "redis or rediss"),
    ],
)
def test_the_example_makes_nothing_of_wrong_values(tmp_path: Path, given: dict[str, str], told: str) -> None:
    """One line says what to set, before the first secret is made."""
    done, calls = run_secrets(tmp_path, BROKER_HOST="queue:6379", **given)
    assert done.returncode != 0
    assert told in done.stderr
    assert calls == []


def test_the_trials_broker_keeps_what_it_is_given(tmp_path: Path) -> None:
    """Its own command line starts a server with the password, a file that is appended to, and nothing evicted; SIGTERM reaches it."""
    (container,) = next(pod for pod in pods("overlays/cpu") if pod.component == "broker").spec["containers"]
    (tmp_path / "valkey-server").symlink_to(_valkey_server())
    port = free_port()
    script = container["args"][0].replace("dir /data", f"dir {tmp_path}\nport {port}\nbind 127.0.0.1")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PASSWORD": "p4ss"}
    with subprocess.Popen([*container["command"], script], env=env, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(100):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            client = connect(Settings(broker=SecretStr(f"redis://:p4ss@127.0.0.1:{port}/0")))
            kept = {name: client.config_get(name)[name] for name in ("appendonly", "maxmemory-policy")}
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=port).ping()
            client.close()
        finally:
            server.terminate()
            status = server.wait(10)
    assert kept == {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    assert status == 0


def test_every_path_in_the_readme_exists() -> None:
    """Commands can be pasted as they are."""
    text = (K8S / "README.md").read_text()
    found = set(re.findall(r"deploy/k8s/[\w./-]*\w", text))
    assert {f"deploy/k8s/{folder}" for folder in BOTH} <= found
    for path in found:
        assert (K8S.parents[1] / path).exists(), path
