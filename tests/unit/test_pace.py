"""Rates and times of arrival are of the last minute, whatever a job has been through."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from producer.follow import Display
from producer.pace import Pace, tell_left, tell_rate
from shared.errors import BrokerError
from shared.keys import STAGES
from shared.progress import Counts

SEGMENTATION, INPAINTING, CAPTIONING = STAGES
ITEMS = 10_000


def counts(*through: int, failed: int = 0, listed: bool = True) -> Counts:
    return Counts(
        items=ITEMS,
        listed=listed,
        stages=dict(zip(STAGES, through, strict=True)),
        done=through[-1],
        needs_review=0,
        failed=failed,
        skipped=0,
        sent=ITEMS,
    )


def test_a_rate_is_of_the_last_minute() -> None:
    """Fast for an hour, then slow: it is slow."""
    pace = Pace()
    done = 0
    for second in range(3600):
        pace.look(counts(done, done, done), second)
        done += 2
    for second in range(3600, 3720):
        pace.look(counts(done + 4 * (second - 3600), done, done + second - 3600), second)
    assert [pace.rate(stage) for stage in STAGES] == [4, 0, 1]


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_a_pause_is_no_part_of_a_rate(state: str) -> None:
    """Nothing is told while it lasts; afterwards the rate is that of the time since."""
    pace = Pace()
    pace.look(counts(0, 0, 0), 0)
    pace.look(counts(10, 10, 10), 10)
    pace.look(replace(counts(10, 10, 10), state=state), 20)  # type: ignore[arg-type] # one of the states
    assert pace.rate(CAPTIONING) is None
    pace.look(counts(10, 10, 10), 1000)
    pace.look(counts(20, 20, 20), 1002)
    assert pace.rate(CAPTIONING) == 5


def test_what_is_run_again_is_no_part_of_a_rate() -> None:
    """A retry takes back what was done: no rate is below nothing."""
    pace = Pace()
    pace.look(counts(100, 100, 100), 0)
    pace.look(counts(40, 40, 40), 10)
    assert pace.rate(CAPTIONING) is None
    pace.look(counts(60, 60, 60), 20)
    assert pace.rate(CAPTIONING) == 2


def test_what_is_found_in_storage_is_no_part_of_a_rate() -> None:
    """A job that is worked out again has queued nothing yet."""
    pace = Pace()
    for second in range(10):
        pace.look(replace(counts(*[1000 * second] * 3), sent=0), second)
    assert pace.rate(CAPTIONING) is None


def test_the_time_that_is_left_is_that_of_the_slowest_stage_on_the_way() -> None:
    """The last stage waits for the ones before it; failed items are not waited for."""
    pace = Pace()
    pace.look(counts(0, 0, 0, failed=1000), 0)
    pace.look(counts(100, 50, 50, failed=1000), 10)
    assert pace.left(SEGMENTATION) == pytest.approx((9000 - 100) / 10)
    assert pace.left(INPAINTING) == pace.left(CAPTIONING) == pytest.approx((9000 - 50) / 5)
    pace.look(counts(9000, 9000, 9000, failed=1000), 20)
    assert pace.left(CAPTIONING) == 0


def test_no_time_is_told_where_none_is_known() -> None:
    """While the source is being listed, and of what stands still."""
    pace = Pace()
    pace.look(counts(0, 0, 0, listed=False), 0)
    pace.look(counts(9, 9, 9, listed=False), 10)
    assert pace.left(CAPTIONING) is None
    pace = Pace()
    pace.look(counts(9, 9, 9), 0)
    pace.look(counts(9, 9, 9), 10)
    assert pace.rate(CAPTIONING) == 0
    assert pace.left(CAPTIONING) is None


def test_rates_and_times_are_told_in_words() -> None:
    """Small rates with enough digits to be told apart; what is not known, and what is over, with none."""
    assert [tell_rate(rate) for rate in (None, 0.034, 12.34)] == ["", "0.03 images/s", "12.3 images/s"]
    assert [tell_left(seconds) for seconds in (None, 0, 3725.4)] == ["", "", "ETA 1:02:05"]


def shown(display: Display, out: io.StringIO, *looks: Counts) -> str:
    with display:
        for look in looks:
            display.show(look)
    return out.getvalue()


def test_a_log_is_told_rates_and_surroundings_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal, in the line that comes now and then."""
    monkeypatch.setattr("producer.follow.QUIET_SECONDS", 0)
    monkeypatch.setattr("producer.pace.EVERY", 0)
    out = io.StringIO()
    display = Display(Console(file=out, width=1000), lambda: "workers: 1 segmentation")
    first, last = shown(display, out, counts(0, 0, 0), counts(5000, 4000, 4000, failed=1)).splitlines()
    assert "images/s" not in first
    assert "cutting out 5000 (" in last
    assert last.count(" images/s)") == len(STAGES)
    assert " of 10000; 1 failed; ETA 0:" in last
    assert last.endswith("; workers: 1 segmentation")


def test_bars_show_a_rate_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of the usual width, and that more may be listed."""
    monkeypatch.setattr("producer.pace.EVERY", 0)
    monkeypatch.setattr("producer.follow.LOOK_SECONDS", 0)
    out = io.StringIO()
    display = Display(Console(file=out, width=80, force_terminal=True, color_system=None), lambda: "workers: none")
    text = shown(display, out, counts(0, 0, 0, listed=False), counts(5000, 4000, 3000, failed=7, listed=False))
    for stage in ("cutting out", "background", "describing"):
        (line,) = (line for line in text.splitlines() if stage in line and "images/s" in line)
        assert "/10000+ " in line
    assert "7 failed" in text
    assert "workers: none" in text


def test_a_display_outlives_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows waits for it, and is shown what is known."""
    monkeypatch.setattr("producer.follow.QUIET_SECONDS", 0)

    def away() -> str:
        raise BrokerError("the broker does not answer")

    out = io.StringIO()
    text = shown(Display(Console(file=out, width=1000), away), out, counts(3, 2, 1))
    assert text == "cutting out 3, background 2, describing 1 of 10000; the broker does not answer\n"
