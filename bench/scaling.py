"""The autoscalers' rule, as Kubernetes and KEDA follow it, read from the ScaledObjects of `deploy/k8s`."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from shared.keys import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.keys import StageName

K8S = Path(__file__).parents[1] / "deploy" / "k8s"
TOLERANCE = 0.1
"""The horizontal pod autoscaler's own: a metric this near its target changes nothing."""
SYNC_SECONDS = 15
"""How often the horizontal pod autoscaler looks."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How far the number of workers may move within a period: `Pods`, or `Percent` of those at its start."""

    kind: str
    value: float
    period: float

    def step(self, start: int) -> float:
        """Return the most workers that may come or go in a period that began with `start`."""
        return self.value if self.kind == "Pods" else start * self.value / 100


@dataclass(frozen=True, slots=True)
class Rule:
    """One stage's ScaledObject. Times are seconds, the target is waiting messages per worker."""

    formula: str
    target: float
    activation: float
    minimum: int
    maximum: int
    polling: float
    cooldown: float
    stabilization: float
    down: tuple[Policy, ...]
    up: tuple[Policy, ...]

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Rule:
        """Read a ScaledObject's `spec`. Raises `KeyError` for a field it must have."""
        modifiers = spec["advanced"]["scalingModifiers"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        policies = {
            way: tuple(Policy(each["type"], each["value"], each["periodSeconds"]) for each in behavior[way]["policies"])
            for way in ("scaleDown", "scaleUp")
        }
        return cls(
            formula=modifiers["formula"],
            target=float(modifiers["target"]),
            activation=float(modifiers["activationTarget"]),
            minimum=spec["minReplicaCount"],
            maximum=spec["maxReplicaCount"],
            polling=spec["pollingInterval"],
            cooldown=spec["cooldownPeriod"],
            stabilization=behavior["scaleDown"]["stabilizationWindowSeconds"],
            down=policies["scaleDown"],
            up=policies["scaleUp"],
        )


def read_rules(overlay: Path = K8S / "overlays" / "keda") -> dict[StageName, Rule]:
    """Read each stage's rule from its file, and what all share from `scaling.yaml`."""
    common = yaml.safe_load((overlay / "scaling.yaml").read_text())["spec"]
    return {
        stage: Rule.of(laid_over(yaml.safe_load((overlay / f"{stage}.yaml").read_text())["spec"], common))
        for stage in STAGES
    }


def laid_over(under: Any, over: Any) -> Any:
    """Merge two trees of mappings; where both have a value, `over` has it."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return under | {key: laid_over(under.get(key), value) for key, value in over.items()}


def read_grace() -> float:
    """Read how many seconds a worker has between being told to stop and being killed."""
    worker = yaml.safe_load((K8S / "base" / "worker.yaml").read_text())
    return float(worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


def read_window() -> int:
    """Read how many unfinished photos a job may have in the queues."""
    lines = (K8S / "config" / "settings.env").read_text().splitlines()
    return next(int(line.partition("=")[2]) for line in lines if line.startswith("VITRINA_WINDOW="))


class Formula:
    """A scaling formula: sums, products, `max` and `min` of triggers and numbers, which KEDA's language and Python write and reckon alike."""

    def __init__(self, text: str) -> None:
        """Read it. Raises `ValueError` for anything else."""
        self._tree = ast.parse(text, mode="eval").body
        self._value(self._tree, dict.fromkeys(self.names, 0.0))

    @property
    def names(self) -> set[str]:
        """The triggers it speaks of."""
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        return {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name) and id(node) not in called}

    def __call__(self, values: Mapping[str, float]) -> float:
        """Compute it."""
        return self._value(self._tree, values)

    def _value(self, node: ast.expr, values: Mapping[str, float]) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name):
                return float(values[name])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._value(left, values) + self._value(right, values)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return self._value(left, values) * self._value(right, values)
            case ast.Call(func=ast.Name(id="max" | "min" as name), args=args) if args:
                return (max if name == "max" else min)(self._value(each, values) for each in args)
            case _:
                raise ValueError(f"not a sum, product, max or min: {ast.unparse(node)}")


@dataclass(slots=True)
class Autoscaler:
    """KEDA between none and one worker, the horizontal pod autoscaler between one and many."""

    rule: Rule
    replicas: int = 0
    _active: float = -math.inf
    # Since when there was work, at the last poll that found any.
    _asked: list[tuple[float, int]] = field(default_factory=list)
    _moved: list[tuple[float, int]] = field(default_factory=list)

    def poll(self, now: float, metric: float) -> None:
        """Wake the first worker, or let the last go after the cooldown: what KEDA does every polling interval."""
        if metric > self.rule.activation:
            self._active = now
            if self.replicas == 0:
                self._move(now, max(1, self.rule.minimum))
        elif self.replicas and not self.rule.minimum and now - self._active >= self.rule.cooldown:
            self._move(now, 0)

    def sync(self, now: float, metric: float) -> None:
        """Choose among one and many: what the horizontal pod autoscaler does every 15 seconds."""
        if self.replicas == 0:
            return
        wanted = math.ceil(metric / self.rule.target)
        if abs(metric / (self.rule.target * self.replicas) - 1) <= TOLERANCE:
            wanted = self.replicas
        wanted = min(self.rule.maximum, max(1, self.rule.minimum, wanted))
        self._asked = [(when, count) for when, count in self._asked if now - when < self.rule.stabilization]
        self._asked.append((now, wanted))
        if wanted < self.replicas:
            wanted = min(self.replicas, max(count for _, count in self._asked))
        self._move(now, self._limited(now, wanted))

    def _limited(self, now: float, wanted: int) -> int:
        if wanted > self.replicas:
            return min(wanted, max(math.ceil(start + p.step(start)) for p, start in self._starts(now, self.rule.up, 1)))
        return max(wanted, min(int(start - p.step(start)) for p, start in self._starts(now, self.rule.down, -1)))

    def _starts(self, now: float, policies: tuple[Policy, ...], sign: int) -> list[tuple[Policy, int]]:
        # Each policy, and how many workers there were when its period began, counting moves that way alone.
        return [
            (
                policy,
                self.replicas - sum(by for when, by in self._moved if now - when < policy.period and by * sign > 0),
            )
            for policy in policies
        ]

    def _move(self, now: float, replicas: int) -> None:
        if replicas != self.replicas:
            self._moved = [*self._moved[-50:], (now, replicas - self.replicas)]
            self.replicas = replicas
