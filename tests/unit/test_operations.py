"""The operator's page: every command, option, setting, alert and phase that it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
import yaml

from bench.autoscale import SPEED
from bench.sizing import table
from producer import cli
from producer.needs import weights_of
from shared import models
from shared.recipe import Recipe
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RECIPES = ROOT / "producer" / "recipes"
SPANS = re.findall(r"`([^`\n]+)`", PAGE)
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined] # a group


def test_its_commands_are_those_of_the_command_line() -> None:
    """With their options, and no command for jobs is left out."""
    named = set()
    for words in (span.split() for span in SPANS if span.startswith("vitrina ")):
        command = COMMANDS[words[1]]
        named.add(words[1])
        command = getattr(command, "commands", {}).get(words[2] if len(words) > 2 else "", command)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words
    assert named >= {
        "submit",
        "watch",
        "status",
        "resume",
        "retry",
        "cancel",
        "pause",
        "rerun",
        "purge",
        "export",
        "keeper",
    }


def test_options_that_stand_alone_belong_to_the_command_before() -> None:
    """`--detach` after `vitrina submit …` in the same cell is an option of submit."""
    alone = 0
    for cell in re.findall(r"\| ([^|\n]+)", PAGE):
        command = None
        for span in re.findall(r"`([^`]+)`", cell):
            words = span.split()
            if words[0] == "vitrina":
                command = COMMANDS[words[1]]
            elif span.startswith("--") and command is not None:
                alone += 1
                assert words[0] in {option for parameter in command.params for option in parameter.opts}, span
    assert alone >= 4


def test_its_settings_are_settings() -> None:
    """All `VITRINA_*` variables."""
    known = {f"VITRINA_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"VITRINA_[A-Z0-9_]*[A-Z0-9]", PAGE))
    assert len(named) > 10
    assert named <= known


def test_its_alerts_are_those_of_prometheus() -> None:
    """Each is explained, and none that is not there."""
    (group,) = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yml").read_text(encoding="utf-8"))["groups"]
    assert set(re.findall(r"`(Vitrina\w+)`", PAGE)) == {rule["alert"] for rule in group["rules"]}


def test_its_phases_are_those_that_workers_measure() -> None:
    """In the code's words, so that what is long can be looked up."""
    table = PAGE[PAGE.index("| phase ") :].split("\n\n")[0]
    stated = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    code = (ROOT / "workers" / "runner.py").read_text(encoding="utf-8")
    assert stated == set(re.findall(r'clock\.lap\("(\w+)"\)', code)) | set(re.findall(r'move\("\w+", "(\w+)"', code))


def test_its_figures_are_those_of_the_benchmarks() -> None:
    """A measured figure stands in bench/README.md as well."""
    bench = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in PAGE.splitlines() if "CPU cores" in line]
    assert len(rows) == 2
    assert all(f"| {row[2]} " in bench for row in rows)


def test_its_sizes_are_those_of_the_command() -> None:
    """The worked example is what the command beside it prints."""
    (words,) = [span.split() for span in SPANS if span.startswith("python -m bench.autoscale --size")]
    rates = [float(rate) for rate in words[words.index("--size") + 1].split(",")]
    lines = list(table(rates, SPEED, float(words[words.index("--gpu-hour-price") + 1])))
    assert len(lines) == 6
    assert "\n".join(lines) in PAGE


def test_its_memory_is_what_the_models_are_known_to_take() -> None:
    """Each model that a GPU would run stands there with its figure, and the sums are right."""
    section = PAGE[PAGE.index("### Memory of a GPU") : PAGE.index("### Costs")]
    told = {name: int(size) for name, size in re.findall(r"`([\w.-]+)` (\d+)\b", section)}
    known = {
        name: model.memory // 10**9 for name, model in models.REGISTRY.items() if not model.starter and model.memory
    }
    assert told == known
    small = sum(known[name] for name in ("sam-vit-b", "dreamshaper-8", "blip2-opt-2.7b", "opus-mt-en-ru"))
    assert f"`opus-mt-en-ru`: {small} GB" in section
    production = sum(known.get(name, 0) for name in weights_of(Recipe.load(RECIPES / "production.yaml")))
    assert f"all of `production`, {production} GB" in section


def test_it_stays_short() -> None:
    """A page that is read in trouble."""
    assert len(PAGE.splitlines()) <= 250
