"""Workers come when there is work, stay while there is, and lose nothing when they go: the rules of `deploy/k8s`, and their replay."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_manifests import environment, named, rendered, secret_keys, workers

from bench.autoscale import (
    LOAD,
    POLICIES,
    SPEED,
    always_on,
    busy_uncounted,
    lists_only,
    main,
    sessions,
    simulate,
)
from bench.fleet import Assumed, Fleet
from bench.scaling import Autoscaler, Formula, Rule, read_grace, read_rules, read_window
from shared.keys import QUEUES, STAGES, queue_name
from shared.presence import busy_key
from shared.queues import UNACKED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.keys import StageName

KEDA = "overlays/keda"
RULES = read_rules()
ASSUMED = Assumed(speed=SPEED, load=LOAD, start=90, transfer=1, grace=read_grace())
SLOW = replace(ASSUMED, speed={stage: speed / 5 for stage, speed in SPEED.items()})
TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}


def only(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe an object with these fields and no other."""
    fields = {**required, **(optional or {})}
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


TRIGGER = only(
    {
        "type": {"const": "redis"},
        "name": {"type": "string", "pattern": "^[a-z_]+$"},  # a name of the formula
        "metadata": only({"listName": TEXT, "listLength": {"type": "string", "pattern": "^[1-9][0-9]*$"}}),
        "authenticationRef": only({"name": {"const": "broker"}}),
    }
)
POLICY = only({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": {**COUNT, "maximum": 1800}})
WAY = only({"stabilizationWindowSeconds": {**COUNT, "maximum": 3600}, "policies": {"type": "array", "items": POLICY}})
SCALED_OBJECT = only(
    {
        "scaleTargetRef": only({"name": TEXT}),
        "pollingInterval": COUNT,
        "cooldownPeriod": COUNT,
        "minReplicaCount": COUNT,
        "maxReplicaCount": COUNT,
        "fallback": only(
            {"failureThreshold": COUNT, "replicas": COUNT, "behavior": {"const": "currentReplicasIfHigher"}}
        ),
        "triggers": {"type": "array", "items": TRIGGER},
        "advanced": only(
            {
                "scalingModifiers": only(
                    # The target is a whole number: KEDA's fallback works with no other.
                    {
                        "formula": TEXT,
                        "target": {"type": "string", "pattern": "^[1-9][0-9]*$"},
                        "activationTarget": TEXT,
                        "metricType": {"const": "AverageValue"},
                    }
                ),
                "horizontalPodAutoscalerConfig": only({"behavior": only({"scaleDown": WAY, "scaleUp": WAY})}),
            }
        ),
    }
)


def scaled() -> dict[str, Any]:
    return {name: each["spec"] for name, each in named(rendered(KEDA), "ScaledObject").items()}


def lengths(**waiting: float) -> dict[str, float]:
    return dict.fromkeys([*(queue.replace(".", "_") for queue in QUEUES), "held", "busy"], 0.0) | waiting


def test_a_stage_is_scaled_by_one_object_with_known_fields() -> None:
    """Every field is one of KEDA's 2.17; each stage has an object, and no other has a say in its number of workers."""
    assert set(scaled()) == set(STAGES)
    for stage, spec in scaled().items():
        jsonschema.validate(spec, SCALED_OBJECT)
        assert spec["scaleTargetRef"]["name"] == stage
        assert "replicas" not in workers(KEDA)[stage].owner["spec"], "would be set back at every apply"
    (authentication,) = named(rendered(KEDA), "TriggerAuthentication").values()
    references = authentication["spec"]["secretTargetRef"]
    assert {each["parameter"] for each in references} == {"address", "password", "tls"}
    assert set(secret_keys(authentication)) == {("vitrina-broker", key) for key in ("address", "password", "tls")}


def test_a_stage_looks_at_its_two_queues_and_at_what_comes_its_way() -> None:
    """The lists are those that workers empty, under names that the formula uses; held messages are kombu's hash, busy workers those that say so."""
    for stage, spec in scaled().items():
        lists = {each["name"]: each["metadata"]["listName"] for each in spec["triggers"]}
        before = STAGES[: STAGES.index(stage) + 1]
        wanted = {queue_name(each, priority=first) for each in before for first in (True, False)}
        assert set(lists.values()) == wanted | {UNACKED, busy_key(STAGES[len(before) - 1])}
        assert Formula(spec["advanced"]["scalingModifiers"]["formula"]).names == set(lists)
        assert lists == {"held": UNACKED, "busy": lists["busy"]} | {queue.replace(".", "_"): queue for queue in wanted}


def test_the_replay_reads_what_is_applied() -> None:
    """The rules of `make bench-autoscale` are those that kustomize renders, and so are grace period and window."""
    assert {stage: Rule.of(spec) for stage, spec in scaled().items()} == RULES
    for stage in STAGES:
        pod = workers(KEDA)[stage]
        assert pod.spec["terminationGracePeriodSeconds"] == read_grace()
        assert int(environment(pod.spec["containers"][0], rendered(KEDA))["VITRINA_WINDOW"]) == read_window()


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_window_asks_for_all_workers_and_nothing_for_none(stage: StageName) -> None:
    """The broker never shows more of a job than its window; photos in either queue count alike."""
    rule, formula = RULES[stage], Formula(RULES[stage].formula)
    assert math.ceil(formula(lengths(**{stage: read_window()})) / rule.target) >= rule.maximum
    assert formula(lengths(**{stage: 30, f"{stage}_priority": 12})) == 42
    assert formula(lengths()) <= rule.activation


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("signal", ["held", "segmentation", "segmentation_priority"])
def test_one_worker_is_there_while_anything_is_on_its_way(stage: StageName, signal: str) -> None:
    """A held message or one in the first stage keeps, or wakes, one worker of every stage, and not more."""
    rule = RULES[stage]
    metric = Formula(rule.formula)(lengths(**{signal: 1000 if signal == "held" else 1}))
    assert rule.activation < metric <= rule.target


@pytest.mark.parametrize("stage", STAGES)
def test_no_fewer_workers_are_asked_for_than_are_busy(stage: StageName) -> None:
    """Whatever waits: with empty lists a busy fleet stays as it is, and busy workers ask for no further ones."""
    rule, formula = RULES[stage], Formula(RULES[stage].formula)
    for busy in range(1, rule.maximum + 1):
        scaler = Autoscaler(rule, replicas=busy)
        for now in range(0, 3600, 15):
            scaler.poll(now, formula(lengths(busy=busy, held=busy)))
            scaler.sync(now, formula(lengths(busy=busy, held=busy)))
            assert scaler.replicas == busy
        assert math.ceil(formula(lengths(busy=busy - 1, held=1)) / rule.target) == max(1, busy - 1)


@pytest.mark.parametrize("text", ["held - 2", "len(held)", "max()", "held if held else 1", "'a'", "__import__('os')"])
def test_a_formula_that_only_keda_could_read_is_refused(text: str) -> None:
    """Only sums, products, max and min mean the same in both languages."""
    with pytest.raises(ValueError, match="not a sum"):
        Formula(text)


def test_the_first_worker_comes_at_a_poll_and_the_last_goes_after_the_cooldown() -> None:
    """What KEDA does between none and one; the horizontal pod autoscaler has no say there."""
    rule = RULES["inpainting"]
    scaler = Autoscaler(rule)
    scaler.sync(0, 5000)
    assert scaler.replicas == 0
    scaler.poll(10, 1)
    assert scaler.replicas == 1
    scaler.poll(10 + rule.cooldown - 1, 0)
    assert scaler.replicas == 1
    scaler.poll(10 + rule.cooldown, 0)
    assert scaler.replicas == 0


def test_workers_go_only_when_the_whole_window_has_not_needed_them() -> None:
    """A short lull costs no worker; after the stabilisation window half of them may go a minute."""
    rule = RULES["inpainting"]
    scaler = Autoscaler(rule, replicas=8)
    scaler.poll(0, 1)
    scaler.sync(0, 8 * rule.target)
    for now in range(15, int(rule.stabilization), 15):
        scaler.sync(now, 1)
        assert scaler.replicas == 8
    seen = []
    for now in range(int(rule.stabilization), int(rule.stabilization) + 300, 15):
        scaler.sync(now, 1)
        seen.append(scaler.replicas)
    assert list(dict.fromkeys(seen)) == [4, 2, 1]
    assert seen.count(4) == seen.count(2) == 4, "a minute each"


def test_a_metric_near_its_target_moves_nothing() -> None:
    """The tolerance of a tenth keeps the number from flapping."""
    rule = RULES["inpainting"]
    scaler = Autoscaler(rule, replicas=4)
    scaler.sync(0, 4.3 * rule.target)
    assert scaler.replicas == 4
    scaler.sync(15, 4.5 * rule.target)
    assert scaler.replicas == 5


@given(st.lists(st.floats(0, 1e5), max_size=200))
def test_the_number_of_workers_stays_within_its_bounds(metrics: list[float]) -> None:
    """Whatever the queues do: never above the largest number, never faster than the policies."""
    rule = RULES["inpainting"]
    scaler = Autoscaler(rule)
    counts = [0]
    for turn, metric in enumerate(metrics):
        scaler.poll(15 * turn, metric)
        scaler.sync(15 * turn + 5, metric)
        counts.append(scaler.replicas)
    assert max(counts) <= rule.maximum
    assert min(counts) >= 0
    assert all(after - before <= 1 + rule.up[0].value for before, after in pairwise(counts))


def day(
    rules: dict[StageName, Rule] = RULES, assumed: Assumed = ASSUMED, arrivals: str = "both", **more: Any
) -> dict[str, Any]:
    asked: dict[str, Any] = {"window": read_window(), "an_hour": 12, "bulk": [(3600, 20_000)]} | more
    return simulate(rules, assumed, arrivals, **asked)


@pytest.mark.parametrize("assumed", [ASSUMED, SLOW], ids=["as aimed for", "a fifth as fast"])
def test_no_photo_is_lost_and_no_busy_worker_removed(assumed: Assumed) -> None:
    """On a day of both kinds of work every photo ends where it began; workers that nobody counts as busy are removed amid their batches."""
    figures = day(assumed=assumed)
    assert figures["photos"] > 20_000
    assert figures["lost"] == figures["killed"] == figures["busy_removed"] == 0
    assert day(busy_uncounted(RULES), assumed)["busy_removed"] > 0, "else this shows nothing"


def test_a_trickle_after_a_burst_interrupts_next_to_nobody() -> None:
    """Where now this and now that one of many workers has a photo, Kubernetes may still choose one that has just taken some: it drains at once."""
    slow, aims = day(arrivals="trickle", assumed=SLOW), day(arrivals="trickle")
    assert slow["lost"] == aims["lost"] == slow["killed"] == aims["killed"] == 0
    assert slow["busy_removed"] == 0 < day(busy_uncounted(RULES), SLOW, "trickle")["busy_removed"]
    assert aims["busy_removed"] <= 1
    assert aims["longest_drain"] < read_grace() / 100


def test_a_grace_period_below_a_batch_costs_work_and_still_loses_nothing() -> None:
    """Killed workers' photos are made by others: what the grace period saves is work, not photos."""
    slow = replace(ASSUMED, speed={"segmentation": 4, "inpainting": 0.2, "captioning": 4}, grace=5)
    figures = day(busy_uncounted(RULES), slow, arrivals="bulk", bulk=[(0, 1500)])
    assert figures["killed"] > 0
    assert figures["lost"] == 0


def test_scaling_costs_a_fraction_and_keeps_the_pace() -> None:
    """Against all workers at all times: under a fifth of the GPU hours, and bulk work as fast but for the start."""
    set_, always = day(), day(always_on(RULES))
    assert set_["gpu_hours"] < always["gpu_hours"] / 5
    assert set_["wait"]["bulk"]["p50"] < 1.2 * always["wait"]["bulk"]["p50"]
    assert set_["wait"]["interactive"]["p50"] < 15, "the median photo finds a worker"


def test_stages_wake_together() -> None:
    """From nothing, a photo waits for one start, not for three in a row."""
    ends = {}
    for name, rules in (("set", RULES), ("lists", lists_only(RULES))):
        fleet = Fleet(rules, ASSUMED, 3600)
        fleet.at(100, lambda fleet=fleet: fleet.queue("interactive", 1))
        fleet.run()
        (ends[name],) = fleet.ended["interactive"]
    one = ASSUMED.start + max(LOAD.values())
    assert one < ends["set"] < one + 30
    assert ends["lists"] > 2.5 * one


def test_priority_photos_do_not_queue_behind_bulk_ones() -> None:
    """With workers there, a session waits for seconds although the window is full."""
    waits = day(always_on(RULES))["wait"]
    assert waits["interactive"]["p95"] < 10 < waits["bulk"]["p50"]


def test_sessions_come_by_day() -> None:
    """None before seven or after nine in the evening."""
    found = sessions(random.Random(1), 20)  # noqa: S311 - the same day every time
    assert len(found) > 50
    assert all(7 * 3600 < when < 21 * 3600 and 5 <= photos <= 40 for when, photos in found)


def test_the_last_line_is_the_days_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table for people, one JSON object for machines."""
    monkeypatch.setattr("bench.autoscale.ARRIVALS", ("bulk", "trickle"))
    main(["--bulk", "0.02", "--sessions", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert len(table) == 2 + 2 * len(POLICIES)
    assert figures["days"]["bulk"]["as set"]["photos"] == 2400
    assert {each["lost"] for policies in figures["days"].values() for each in policies.values()} == {0}


@pytest.mark.parametrize(
    "words", [["--speed", "inpainting"], ["--speed", "painting=3"], ["--load", "captioning=0"], ["--start", "-1"]]
)
def test_a_wrong_figure_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what to write."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert re.search(r"write STAGE=NUMBER|give a number", capsys.readouterr().err)
