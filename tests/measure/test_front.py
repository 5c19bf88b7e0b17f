"""Trials side by side: latencies that the drift of a machine leaves alone, and the front of what may be compared."""

from __future__ import annotations

from tests.commands.sweep.rows import record, row
from vitdeploy.measure.front import compare, describe_comparison, find_front, is_certainly_beaten


def test_latencies_are_relative_to_the_same_reference() -> None:
    """The machine was half as fast while the second trial ran: both sides were, and its speed-up says so."""
    cold = record("cold", p50_ms=5.0, reference_p50_ms=10.0, speedup=2.0, speedup_ci95=(1.9, 2.1))
    hot = record("hot", p50_ms=8.0, reference_p50_ms=20.0, speedup=2.5, speedup_ci95=(2.4, 2.6))
    first, second = compare([cold, hot])
    assert (first.latency_ms, second.latency_ms) == (7.5, 6.0)  # of 15 ms, the median of 10 and 20
    assert second.latency_ci95 == (15 / 2.6, 15 / 2.4)
    assert {first.basis, second.basis} == {"speed-up"}
    assert [one.front for one in (first, second)] == [False, True], "it is the faster one"


def test_without_a_speedup_it_is_the_p50() -> None:
    (only,) = compare([record("a", speedup=None, speedup_ci95=None, reference_p50_ms=None)])
    assert (only.latency_ms, only.latency_ci95, only.basis) == (5.0, (4.9, 5.1), "p50")
    assert any("as it was timed" in note for note in describe_comparison([only]))


def test_the_front_is_what_nothing_beats() -> None:
    fast, exact = row("fast", latency_ms=2, deployed=80.0), row("exact", latency_ms=9, deployed=90.0)
    between, beaten = row("between", latency_ms=5, deployed=85.0), row("beaten", latency_ms=6, deployed=85.0)
    doubtful = row("doubtful", latency_ms=1, deployed=99.0, doubts=("latency: …",))
    assert [one.name for one in find_front([beaten, exact, doubtful, between, fast])] == ["fast", "between", "exact"]


def test_lower_is_better_for_errors() -> None:
    fast = row("fast", latency_ms=2, deployed=0.3, better="lower")
    worse, better = row("worse", latency_ms=3, deployed=0.4, better="lower"), row("b", deployed=0.1, better="lower")
    assert [one.name for one in find_front([better, worse, fast])] == ["fast", "b"]


def test_other_machines_devices_data_and_conditions_are_other_groups() -> None:
    others = [{"machine": "m2"}, {"device": "GPU"}, {"data_digest": "d2"}, {"timing": "batch 8"}, {"metric": "mIoU"}]
    rows = compare([record("a"), record("same", device="cpu"), *(record(f"b{n}", **o) for n, o in enumerate(others))])
    assert [one.group for one in rows] == [1, 1, 2, 3, 4, 5, 6]
    assert "6 groups are not compared with each other" in " ".join(describe_comparison(rows))
    assert all(one.front for one in rows if one.group > 1), "each group has a front of its own"


def test_what_failed_has_no_group() -> None:
    rows = compare([record("a", status="failed", p50_ms=None, speedup=None), record("b", deployed=None)])
    assert [(one.group, one.front) for one in rows] == [(0, False), (0, False)]


def test_certainly_beaten_needs_intervals_apart_and_no_less_accuracy() -> None:
    fast = row("fast", latency_ms=4.0, latency_ci95=(3.9, 4.1), deployed=85.0)
    assert is_certainly_beaten(row("slow", latency_ms=5.0, latency_ci95=(4.2, 5.8), deployed=85.0), [fast])
    assert not is_certainly_beaten(row("near", latency_ms=5.0, latency_ci95=(4.0, 6.0), deployed=85.0), [fast])
    assert not is_certainly_beaten(row("exact", latency_ms=9.0, deployed=85.1), [fast])
    assert not is_certainly_beaten(row("elsewhere", latency_ms=9.0, deployed=80.0, group=2), [fast])
    assert not is_certainly_beaten(fast, [fast])
    doubtful = fast.model_copy(update={"doubts": ("latency: …",)})
    assert not is_certainly_beaten(row("slow", latency_ms=9.0, deployed=80.0), [doubtful])


def test_between_models_the_drift_of_their_references_counts() -> None:
    fast = row("fast", latency_ms=4.0, latency_ci95=(3.9, 4.1), reference_p50_ms=10.0)
    drifted = row("drifted", latency_ms=4.0, latency_ci95=(3.9, 4.1), reference_p50_ms=15.0)
    slow = row("slow", latency_ms=5.0, latency_ci95=(4.9, 5.1), model_digest="w2", model="other")
    assert is_certainly_beaten(slow, [fast, slow])
    assert not is_certainly_beaten(slow, [fast, drifted, slow])
    assert "FP32 demo:digits was up to 50 % slower" in " ".join(describe_comparison([fast, drifted, slow]))
