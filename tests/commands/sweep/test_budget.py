"""Times: durations, estimates, and the benches that are worth more time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.commands.sweep.rows import record, row
from vitdeploy.commands.sweep.budget import choose_longer, estimate, parse_duration
from vitdeploy.commands.sweep.definition import TrialSpec, read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("2h", 7200), ("1.5h", 5400), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "two hours", "-1h", "0s", "1h30", "1e3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="time"):
        parse_duration(text)


@pytest.fixture
def trials(tmp_path: Path) -> tuple[TrialSpec, ...]:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "recipe: {model: demo:digits, bench: {seconds: 4}}\n"
        "matrix: {target: [openvino, onnxruntime], precision: [fp32, int8]}\n"
    )
    return read_definition(file, Naming()).trials


def test_the_estimate_is_of_the_most_similar_trials(trials: tuple[TrialSpec, ...]) -> None:
    nothing = estimate(trials, {})
    assert (nothing.trials, nothing.seconds) == (4, 4 * 1.5 * 4)
    assert "no trial is finished" in nothing.basis
    same = record("a", target="openvino", precision="int8", seconds=100.0)
    other = record("b", target="openvino", precision="fp32", seconds=20.0)
    failed = record("c", status="failed", seconds=9999.0)
    records = {one.name: one for one in (same, other, failed)}
    assert estimate(trials[1:2], records).seconds == 100.0
    assert estimate(trials[2:], records).seconds == 120.0, "of the model: the mean of 100 and 20, twice"
    assert estimate((), records).seconds == 0.0


def test_only_benches_that_may_change_the_front_are_lengthened() -> None:
    sure = row("sure", latency_ms=4.0, latency_ci95=(3.9, 4.1), bench_seconds=2.0)
    near = row("near", latency_ms=4.3, latency_ci95=(3.6, 5.0), bench_seconds=2.0)
    beaten = row("beaten", latency_ms=9.0, latency_ci95=(5.0, 13.0), bench_seconds=2.0)
    doubtful = row("doubtful", latency_ms=4.3, latency_ci95=(4.2, 4.4), bench_seconds=2.0, doubts=("latency: …",))
    seconds = dict.fromkeys(("sure", "near", "beaten", "doubtful"), 10.0)
    rows = [sure, near, beaten, doubtful]
    order = []
    while (name := choose_longer(rows, seconds, left_s=1e9)) is not None:
        order.append(name)
        seconds.pop(name)
    assert order[0] == "near", "its interval is the widest of those that may be on the front"
    assert "beaten" not in order
    assert "sure" in order


def test_a_bench_that_does_not_fit_into_the_budget_is_not_begun() -> None:
    one = row("a", bench_seconds=2.0)
    assert choose_longer([one], {"a": 10.0}, left_s=14.0) is None
    assert choose_longer([one], {"a": 10.0}, left_s=15.0) == "a"
    assert choose_longer([row("a", bench_seconds=10.0)], {"a": 10.0}, left_s=1e9) is None


def test_without_a_budget_every_bench_gets_the_time_of_the_recipe(trials: tuple[TrialSpec, ...]) -> None:
    sure = row("sure", latency_ms=4.0, latency_ci95=(3.9, 4.1), bench_seconds=10.0)
    beaten = row("beaten", latency_ms=9.0, latency_ci95=(5.0, 13.0), bench_seconds=2.0)
    assert choose_longer([sure, beaten], {"sure": 10.0, "beaten": 10.0}, left_s=math.inf) == "beaten"
    assert estimate((), {}, [10.0]).seconds == 15.0
    assert estimate(trials[1:2], {"a": record("a", seconds=100.0)}, [10.0]).seconds == 115.0
