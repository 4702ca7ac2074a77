"""The manifests of `deploy/k8s` as an operator would apply them, and what to look at in them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/keda")
JOBS = ("jobs/models", "jobs/models-cpu", "jobs/ingest", "jobs/nightly")
BOTH = (*OVERLAYS, *JOBS)
COMPONENTS = ("components/pod-identity", "components/tracing", "components/monitoring")

Object = dict[str, Any]


@functools.cache
def rendered(folder: str) -> tuple[Object, ...]:
    """Render a kustomization. Whatever kustomize says against it fails the test."""
    done = subprocess.run([KUBECTL, "kustomize", K8S / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@functools.cache
def extended(folder: str, *components: str) -> tuple[Object, ...]:
    """Render an overlay of an operator's own: one of ours with components."""
    with tempfile.TemporaryDirectory() as own:
        ours = {each: os.path.relpath(K8S / each, os.path.realpath(own)) for each in (folder, *components)}
        parts = {"resources": [ours[folder]], "components": [ours[each] for each in components]}
        Path(own, "kustomization.yaml").write_text(yaml.safe_dump(parts))
        return rendered(os.path.relpath(own, K8S))


def named(objects: Iterable[Object], kind: str) -> dict[str, Object]:
    """Return the objects of a kind by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


@dataclass(frozen=True)
class Pod:
    """A pod that a kustomization would start."""

    where: str
    owner: Object
    labels: dict[str, str]
    spec: Object

    def __str__(self) -> str:
        return f"{self.where}: {self.owner['metadata']['name']}"

    @property
    def component(self) -> str:
        """What part of Vitrina it is."""
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Object]:
        """All of them, those that run first included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(folder: str) -> list[Pod]:
    """Return the pods of a kustomization."""
    return pods_of(rendered(folder), folder)


def pods_of(objects: Iterable[Object], where: str) -> list[Pod]:
    """Return the pods that these objects would start."""
    found = []
    for each in objects:
        spec = each.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            found.append(Pod(where, each, template["metadata"]["labels"], template["spec"]))
    return found


def every_pod() -> list[Pod]:
    """Return the pods of everything there is."""
    return [pod for folder in BOTH for pod in pods(folder)]


def workers(folder: str) -> dict[str, Pod]:
    """Return the workers of a kustomization by stage."""
    return {pod.owner["metadata"]["name"]: pod for pod in pods(folder) if pod.component == "worker"}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Tell whether a label selector fits, as Kubernetes reads one."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", "this reads no other"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def environment(container: Object, objects: Iterable[Object]) -> dict[str, str]:
    """Return a container's plain variables: its own, and those of the maps it names. References to secrets are left out."""
    maps = named(objects, "ConfigMap")
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def arguments(container: Object, objects: Iterable[Object]) -> list[str]:
    """Return a container's arguments with `$(NAME)` filled in, as the node does."""
    values = environment(container, objects)
    found = []
    for argument in container["args"]:
        for name, value in values.items():
            argument = argument.replace(f"$({name})", value)  # noqa: PLW2901 - one after the other
        assert "$(" not in argument, f"nothing fills in {argument}"
        found.append(argument)
    return found


def secret_keys(tree: Any) -> Iterator[tuple[str, str]]:
    """Name every secret that is referred to by key, and the key."""
    if isinstance(tree, dict):
        if {"name", "key"} <= set(tree):
            yield tree["name"], tree["key"]
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for each in tree:
            yield from secret_keys(each)


def policies(objects: Iterable[Object], labels: dict[str, str], way: str) -> list[Object]:
    """Return the network policies that hold for a pod in one direction, `Ingress` or `Egress`."""
    return [
        policy["spec"]
        for policy in named(objects, "NetworkPolicy").values()
        if way in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], labels)
    ]


def ports(objects: Iterable[Object], labels: dict[str, str], way: str) -> set[int | str]:
    """Return the ports that a pod may be reached at, or may reach."""
    rules = [rule for spec in policies(objects, labels, way) for rule in spec.get(way.lower(), [])]
    return {port["port"] for rule in rules for port in rule["ports"]}
