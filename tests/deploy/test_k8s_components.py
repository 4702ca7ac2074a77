"""What an operator adds to an overlay in `deploy/k8s`: each component opens and sets what it says, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from made_manifests import (
    COMPONENTS,
    JOBS,
    K8S,
    OVERLAYS,
    Object,
    environment,
    extended,
    named,
    pods,
    pods_of,
    policies,
    ports,
    rendered,
    selects,
)

MONITORING = K8S.parent / "monitoring"
POD_MONITOR = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "additionalProperties": False,
    "properties": {
        "selector": {"type": "object", "required": ["matchLabels"]},
        "podMetricsEndpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["port"],
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                    "relabelings": {"type": "array"},
                },
            },
        },
    },
}


def with_(*components: str) -> tuple[Object, ...]:
    return extended("overlays/keda", *(f"components/{name}" for name in components))


def reached(objects: tuple[Object, ...], component: str, way: str = "Egress") -> set[int | str]:
    """Return the ports that a kind of pods may reach, those of the jobs too."""
    every = [*pods_of(objects, "extended"), *(pod for job in JOBS for pod in pods(job))]
    return next(ports(objects, pod.labels, way) for pod in every if pod.component == component)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_all_components_fit_every_overlay(folder: str) -> None:
    """Together; what they add is valid, lies in the namespace, and keeps it closed for everything else."""
    objects = extended(folder, *COMPONENTS)
    for each in objects:
        if each["kind"] not in {"Namespace", "Kustomization"}:
            assert each["metadata"]["namespace"] == "vitrina", each["metadata"]
        if each["apiVersion"] in {"v1", "apps/v1", "networking.k8s.io/v1"}:
            kubernetes_validate.validate(each, "1.33", strict=True)
    for pod in pods_of(objects, folder):
        assert any(not spec.get("egress") for spec in policies(objects, pod.labels, "Egress")), f"{pod} is open"


def test_every_component_is_looked_at_and_told_of() -> None:
    """None is added without a test and a line in the README."""
    assert {f"components/{path.parent.name}" for path in K8S.glob("components/*/kustomization.yaml")} == set(COMPONENTS)
    text = (K8S / "README.md").read_text()
    assert not [name for name in COMPONENTS if f"`deploy/k8s/{name}`" not in text]


def test_pod_identity_opens_its_agent_and_not_the_nodes_metadata() -> None:
    """To those that read and write storage; without it nobody reaches either."""
    objects, before = with_("pod-identity"), rendered("overlays/keda")
    for component in ("worker", "keeper", "producer"):
        assert reached(objects, component) - reached(before, component) == {80}
    for component in ("flower", "models"):
        assert 80 not in reached(objects, component)
    (rule,) = named(objects, "NetworkPolicy")["pod-identity"]["spec"]["egress"]
    assert [each["ipBlock"]["cidr"] for each in rule["to"]] == ["169.254.170.23/32", "fd00:ec2::23/128"]
    texts = {re.sub(r'"except": \[[^]]*\]', "", json.dumps(each)) for each in named(objects, "NetworkPolicy").values()}
    assert not [text for text in texts if "169.254.169.254" in text]


def test_tracing_tells_workers_of_the_collector_and_lets_them_reach_it() -> None:
    """Workers alone reach the port that their settings name, in the namespace that they name."""
    objects, before = with_("tracing"), rendered("overlays/keda")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in json.dumps(before)
    for pod in pods_of(objects, "tracing"):
        if pod.component != "worker":
            assert reached(objects, pod.component) == reached(before, pod.component)
            continue
        values = environment(pod.spec["containers"][0], objects)
        assert values["VITRINA_METRICS_PORT"] == "9100", "what was set is kept"
        _, namespace, port = re.fullmatch(
            r"http://([a-z-]+)\.([a-z]+):(\d+)", values["OTEL_EXPORTER_OTLP_ENDPOINT"]
        ).groups()  # type: ignore[union-attr] # fails if None
        assert reached(objects, "worker") - reached(before, "worker") == {int(port)}
        (rule,) = named(objects, "NetworkPolicy")["tracing"]["spec"]["egress"]
        assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]


def scraped() -> dict[str, Any]:
    return {name: each["spec"] for name, each in named(with_("monitoring"), "PodMonitor").items()}


def test_everything_that_serves_metrics_is_scraped() -> None:
    """Each monitor finds pods, at a port that they have and that Prometheus may reach; every worker, keeper and Flower has one."""
    objects, found = with_("monitoring"), []
    for spec in scraped().values():
        jsonschema.validate(spec, POD_MONITOR)
        (endpoint,) = spec["podMetricsEndpoints"]
        for pod in pods_of(objects, "monitoring"):
            if selects(spec["selector"], pod.labels):
                found.append(pod.owner["metadata"]["name"])
                names = {port["name"]: port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
                assert endpoint["port"] in ports(objects, pod.labels, "Ingress"), pod
                annotations = pod.owner["spec"]["template"]["metadata"]["annotations"]
                assert annotations["prometheus.io/port"] == str(names[endpoint["port"]]), "for who goes by annotations"
    assert sorted(found) == ["captioning", "flower", "inpainting", "keeper", "segmentation"]


def test_scraped_jobs_have_the_names_that_alerts_know() -> None:
    """Those of prometheus.yml; the alert on a target that is down chooses by them."""
    jobs = set()
    for name, spec in scraped().items():
        (relabeling,) = spec["podMetricsEndpoints"][0]["relabelings"]
        assert relabeling == {"targetLabel": "job", "replacement": name}
        jobs.add(name)
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert jobs == {each["job_name"] for each in config["scrape_configs"]}
    (selector,) = re.findall(r'up\{job=~"([^"]+)"\}', (MONITORING / "alerts.yml").read_text())
    assert all(re.fullmatch(selector, job) for job in jobs)


def test_alerts_and_dashboard_are_the_very_ones_of_compose() -> None:
    """The rules under another head, the dashboard as it is, with the label that Grafana's sidecar looks for."""
    objects = with_("monitoring")
    rule = named(objects, "PrometheusRule")["vitrina"]
    told = "copy the groups of deploy/monitoring/alerts.yml into deploy/k8s/components/monitoring/alerts.yaml"
    assert rule["spec"] == yaml.safe_load((MONITORING / "alerts.yml").read_text()), told
    dashboard = named(objects, "ConfigMap")["vitrina-dashboard"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["data"] == {
        "vitrina.json": Path(MONITORING / "grafana/dashboards/vitrina.json").read_text(encoding="utf-8")
    }


def test_flowers_metrics_are_where_they_are_looked_for() -> None:
    """At the root: Flower runs without a prefix here, so that Prometheus's usual path is its own."""
    (flower,) = [pod for pod in pods("overlays/gpu") if pod.component == "flower"]
    assert "VITRINA_FLOWER_URL_PREFIX" not in environment(flower.spec["containers"][0], rendered("overlays/gpu"))
    assert "path" not in scraped()["vitrina-flower"]["podMetricsEndpoints"][0]
