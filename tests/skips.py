"""In CI nothing is skipped quietly: a test that is, for want of what CI can have, is a failure there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

ALLOWED = (
    "no catalogue at",  # photos that are no part of this repository
    "no GPU",
    "needs Chromium",
    "rabbitmq-server is not installed",  # a package of Debian, as the next
    "promtool is missing",
    "Docker",
    "on Linux alone",
)
"""Reasons that hold in CI as well. They are listed at the end of every run."""


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return
    reason = report.longrepr[2]
    if not any(allowed in reason for allowed in ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which has, or can install, what it wants: {reason}"


def _in_ci() -> bool:
    return bool(os.environ.get("VITRINA_CI") or os.environ.get("CI"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test that skips itself."""
    report = yield
    if _in_ci():
        _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a module that skips itself."""
    report = yield
    if _in_ci():
        _judge(report)
    return report
