"""The operator's page: every command, option, setting, alert and phase that it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
import yaml

from producer import cli
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
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


def test_it_stays_short() -> None:
    """A page that is read in trouble."""
    assert len(PAGE.splitlines()) <= 250
