"""What is installed is pinned, from the index, and under a licence that lets it be used; and an audit that was not done is no pass."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ALLOWED = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla Public|HPND|Zlib|Unlicense|0BSD|CC0)\b",
    re.IGNORECASE,
)
REFUSED = re.compile(r"\b(A?GPL|LGPL|SSPL|BUSL|proprietary|commercial)", re.IGNORECASE)
KNOWN = {"segment-anything": "Apache-2.0, in its repository"}
"""Packages that do not say."""
RUNTIME = re.compile(r"nvidia-|cuda-")
"""Libraries of NVIDIA's that torch loads on a GPU: free to use and to hand on with an application, not open."""


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in named}


def declared() -> list[Requirement]:
    project = PROJECT["project"]
    groups = [*project["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()]
    return [Requirement(text) for group in (project["dependencies"], *groups) for text in group]


def installed() -> dict[str, Distribution]:
    """Everything that `make setup` installs, what it needs included."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = declared()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in requirement.extras or {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # an extra that was not asked for here
            for text in found[name].requires or ():
                needed = Requirement(text)
                assert needed.url is None, f"{name} needs {text}"
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return found


def test_every_dependency_is_pinned() -> None:
    """At the version that is installed; from the index, none from an address."""
    assert all(requirement.url is None for requirement in declared())
    versions = {name: found.version for name, found in installed().items()}
    assert len(versions) > 80
    loose = {name: version for name, version in versions.items() if pins().get(name) != version and name != "vitrina"}
    assert not loose


def licence(found: Distribution) -> str:
    said = found.metadata.get_all("Classifier") or []
    classifiers = [line.rpartition("::")[2] for line in said if line.startswith("License ::")]
    return found.metadata.get("License-Expression") or "; ".join(classifiers) or found.metadata.get("License") or ""


def test_every_licence_lets_it_be_used() -> None:
    """In a shop's own service, and in an image that is handed on."""
    wrong = {}
    for name, found in installed().items():
        said = licence(found)
        fine = ALLOWED.search(said) and not REFUSED.search(said)
        if not (fine or name in KNOWN or RUNTIME.match(name)):
            wrong[name] = said[:80]
    assert not wrong


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["3"]}]}
MISSED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        ([FINE], 0, "1 packages, no known vulnerability"),
        ([FINE, BAD], 1, "b 2: PYSEC-2026-1, fixed in 3"),
        ([FINE, MISSED], 3, "not complete, 1 of 2 packages could not be looked up: c"),
        ([BAD, MISSED], 1, "not complete"),
        ([], 3, "not complete"),
        (None, 3, "not done, the advisories were not reached: no network"),
    ],
)
def test_an_audit_that_was_not_done_is_no_pass(found: list[Any] | None, status: int, words: str) -> None:
    """pip-audit itself ends with 0 when it could look nothing up."""
    said = json.dumps({"dependencies": found}) if found is not None else ""
    program = f"import sys; print({said!r}); sys.stderr.write('no network')"
    command = [sys.executable, str(ROOT / "tests" / "audit.py"), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert words in done.stdout
