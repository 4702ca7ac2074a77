"""What watches an installation: alerts fire when they should, and every metric that is named is one that is served."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from producer.embedded import Broker
from producer.keeper import Keeper
from producer.metrics import BrokerCollector, KeeperCollector
from shared.connection import connect
from shared.keys import STAGES
from shared.progress import Failure, Progress
from shared.settings import Settings
from workers import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "vitrina.json"
PROMTOOL = shutil.which("promtool")
OURS = re.compile(r"\b(vitrina_[a-z_]+)(?:\{([^}]*)\})?")
FOUND_BY_PROMETHEUS = {"instance", "job"}

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: apt-get install prometheus")


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run([PROMTOOL or "", *arguments], capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def queries() -> list[str]:
    """Return what the dashboard asks, with Grafana's variables filled in."""
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [query.replace("$stage", STAGES[0]).replace("$__rate_interval", "1m") for query in asked]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names of all samples with their labels, from the workers' module and a keeper with a failed item."""
    names = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            for suffix in _suffixes(metric):
                names[metric._name + suffix] = {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
    names["vitrina_gpu_memory_bytes"] = {"device", "kind"}
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        settings = Settings(broker=broker.url)
        registry = CollectorRegistry()
        registry.register(BrokerCollector(settings))
        registry.register(KeeperCollector(Keeper(settings)))
        with connect(settings) as client:
            progress = Progress(client, "20261123-142501-3f9a2c")
            progress.begin("file:///nowhere")
            progress.listed(2, complete=True)
            progress.fail(Failure(0, "a.jpg", STAGES[0], "unreadable", "empty"))
        for family in registry.collect():
            for sample in family.samples:
                names[sample.name] = set(sample.labels)
    return names


def _suffixes(metric: Counter | Gauge | Histogram) -> Iterator[str]:
    if isinstance(metric, Counter):
        yield "_total"
    elif isinstance(metric, Histogram):
        yield from ("_bucket", "_count", "_sum")
    else:
        yield ""


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before() -> None:
    """Each in a case of its own, beside the nearest one in which it must be silent."""
    promtool("test", "rules", "alerts_test.yml")


def test_every_alert_has_its_case() -> None:
    """And says how grave it is, what is wrong and what to do."""
    cases = (FOLDER / "alerts_test.yml").read_text(encoding="utf-8")
    for alert in alerts():
        assert alert["alert"] in cases
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "action"}


def test_an_alert_knows_what_the_autoscaler_asks_for() -> None:
    """What a worker may have waiting before `VitrinaWorkerGone` misses one is the target of its stage's ScaledObject."""
    (expression,) = (each["expr"] for each in alerts() if each["alert"] == "VitrinaWorkerGone")
    mine, others = (
        re.search(rf'stage{sign}"inpainting".*/ (\d+)', expression)[1]  # type: ignore[index]
        for sign in ("=", "!=")
    )
    for stage in STAGES:
        scaled = yaml.safe_load((FOLDER.parent / "k8s/overlays/keda" / f"{stage}.yaml").read_text(encoding="utf-8"))
        target = scaled["spec"]["advanced"]["scalingModifiers"]["target"]
        assert target == (mine if stage == "inpainting" else others)


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    """With its rules."""
    assert "valid" in promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    """All of them are PromQL once Grafana has filled in its variables."""
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


@pytest.mark.parametrize("where", ["alerts", "dashboard"])
def test_every_metric_that_is_named_is_served(where: str, served: dict[str, set[str]]) -> None:
    """With the labels by which it is chosen."""
    texts = queries() if where == "dashboard" else [alert["expr"] for alert in alerts()]
    chosen = [match.groups() for text in texts for match in OURS.finditer(text)]
    assert len(chosen) > 10
    for name, selector in chosen:
        assert name in served
        labels = set(re.findall(r"(\w+)(?:=|!)", selector or ""))
        assert labels <= served[name] | FOUND_BY_PROMETHEUS, name


def test_what_is_grouped_by_is_a_label(served: dict[str, set[str]]) -> None:
    """A `by` that no series has would add up everything."""
    known = set().union(*served.values()) | FOUND_BY_PROMETHEUS
    texts = [*queries(), *(alert["expr"] for alert in alerts())]
    grouped = {
        label for text in texts for names in re.findall(r"(?:by|on) \(([^)]+)\)", text) for label in names.split(", ")
    }
    assert grouped > {"stage", "queue", "job_id"}
    assert grouped <= known


def test_every_metric_is_shown_or_watched(served: dict[str, set[str]]) -> None:
    """What nobody looks at would not be worth serving; histograms count by one of their series."""
    texts = "\n".join([*queries(), *(alert["expr"] for alert in alerts())])
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in served}
    quiet = {"vitrina_keeper_active", "vitrina_keeper_last_look_timestamp_seconds"}  # for who looks for a keeper
    assert {family for family in families if family not in texts} <= quiet


def test_the_dashboard_has_a_row_per_stage() -> None:
    """The stage's row is repeated for each, all chosen at first, and every panel says what it shows."""
    board = dashboard()
    (variable,) = board["templating"]["list"]
    assert tuple(variable["query"].split(",")) == STAGES
    rows = [panel for panel in board["panels"] if panel["type"] == "row"]
    assert [row.get("repeat") for row in rows] == [None, "stage"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    uid = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0][
        "uid"
    ]
    assert all(panel["title"] and panel["targets"] and panel["datasource"]["uid"] == uid for panel in panels)


def test_panels_do_not_overlap() -> None:
    """Each place of the grid belongs to one."""
    places = [
        (x, y)
        for panel in dashboard()["panels"]
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
