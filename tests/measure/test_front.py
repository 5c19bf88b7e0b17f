"""Trials side by side: latencies that the drift of a machine leaves alone, and the front of what may be compared."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest

from tests.commands.sweep.rows import record, row
from vitdeploy.commands.sweep.budget import choose_longer
from vitdeploy.evidence import SweepRow, TrialRecord
from vitdeploy.measure.front import compare, describe_comparison, find_beaten, find_front, list_conditions


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
    others: list[dict[str, Any]] = [
        {"machine": "m2"}, {"device": "GPU"}, {"data_digest": "d2"}, {"timing": "batch 8"}, {"metric": "mIoU"},
        {"samples": 100}, {"reference_version": "torch 2.4.1"},
    ]  # fmt: skip
    rows = compare([record("a"), record("same", device="cpu"), *(record(f"b{n}", **o) for n, o in enumerate(others))])
    assert [one.group for one in rows] == [1, 1, 2, 3, 4, 5, 6, 7, 8]
    assert "8 groups are not compared with each other" in " ".join(describe_comparison(rows))
    assert all(one.front for one in rows if one.group > 1), "each group has a front of its own"


def test_the_note_names_only_what_differs() -> None:
    rows = compare([record("few", samples=100), record("all", samples=10_000)])
    assert "because these differ: number of samples" in " ".join(describe_comparison(rows))
    assert [list_conditions(row)["number of samples"] for row in rows] == ["100", "10,000"]


def test_a_trial_with_one_damaged_image_more_is_not_compared() -> None:
    rows = compare([record("a", samples=500), record("b", samples=500), record("damaged", samples=499, deployed=99.0)])
    assert [row.group for row in rows] == [1, 1, 2]
    assert find_beaten(rows) == set()


def test_references_of_different_versions_are_not_pooled() -> None:
    """The older PyTorch is slower, so its speed-up is larger: a common median would reverse the order."""
    old = record("old", p50_ms=50.0, reference_p50_ms=100.0, speedup=2.0, reference_version="torch 2.4.1")
    new = record(
        "new", p50_ms=40.0, reference_p50_ms=60.0, speedup=1.5, speedup_ci95=(1.4, 1.6), reference_version="torch 2.8.0"
    )
    rows = compare([old, new])
    assert [row.latency_ms for row in rows] == [50.0, 40.0]
    assert [row.group for row in rows] == [1, 2]
    assert "because these differ: version of the reference" in " ".join(describe_comparison(rows))


def test_records_without_a_version_are_read_and_compared_with_each_other() -> None:
    facts = record("a").model_dump(exclude={"reference_version", "engine"})
    older = [TrialRecord.model_validate({**facts, "name": name}) for name in ("a", "b")]
    rows = compare([*older, record("new", reference_version="torch 2.8.0")])
    assert [row.group for row in rows] == [1, 1, 2]
    assert list_conditions(rows[0])["version of the reference"] == "not recorded"
    alone = record("alone", speedup=None, speedup_ci95=None, reference_p50_ms=None)
    assert list_conditions(alone)["version of the reference"] == "none"


def test_versions_of_an_engine_are_compared_and_named() -> None:
    rows = compare([record("a", engine="openvino 2025.1.0"), record("b", engine="openvino 2025.3.0"), record("c")])
    assert [row.group for row in rows] == [1, 1, 1]
    notes = describe_comparison(rows)
    assert "group 1 was timed with several versions of openvino: 2025.1.0, 2025.3.0" in notes
    assert "several versions" not in " ".join(describe_comparison(rows[:1]))


def test_the_front_is_not_marked_by_name() -> None:
    rows = compare([record("same"), record("same", speedup=4.0, speedup_ci95=(3.9, 4.1))])
    assert [row.front for row in rows] == [False, True]


def test_what_failed_has_no_group() -> None:
    rows = compare([record("a", status="failed", p50_ms=None, speedup=None), record("b", deployed=None)])
    assert [(one.group, one.front) for one in rows] == [(0, False), (0, False)]


def test_certainly_beaten_needs_intervals_apart_and_no_less_accuracy() -> None:
    fast = row("fast", latency_ms=4.0, latency_ci95=(3.9, 4.1), deployed=85.0)
    slow = row("slow", latency_ms=5.0, latency_ci95=(4.2, 5.8), deployed=85.0)
    near = row("near", latency_ms=5.0, latency_ci95=(4.0, 6.0), deployed=85.0)
    exact, elsewhere = row("exact", latency_ms=9.0, deployed=85.1), row("elsewhere", latency_ms=9.0, group=2)
    assert find_beaten([slow, near, exact, elsewhere, fast]) == {"slow"}
    doubtful = fast.model_copy(update={"doubts": ("latency: …",)})
    assert find_beaten([slow, doubtful]) == set()


def test_a_disturbed_bench_is_never_certainly_beaten() -> None:
    """Other processes ran: it seems slow for that, and a longer bench may bring it onto the front."""
    fast = row("fast", latency_ms=4.0)
    disturbed = row("disturbed", latency_ms=9.0, doubts=("latency: other processes ran",))
    assert find_beaten([fast, disturbed]) == set()
    inaccurate = row("inaccurate", latency_ms=9.0, doubts=("accuracy: 3 samples only",))
    assert find_beaten([fast, inaccurate]) == {"inaccurate"}, "a longer bench does not help there"


def test_between_models_the_drift_of_their_references_counts() -> None:
    fast = row("fast", latency_ms=4.0, latency_ci95=(3.9, 4.1), reference_p50_ms=10.0)
    drifted = row("drifted", latency_ms=4.0, latency_ci95=(3.9, 4.1), reference_p50_ms=15.0)
    slow = row("slow", latency_ms=5.0, latency_ci95=(4.9, 5.1), model_digest="w2", model="other")
    assert find_beaten([fast, slow]) == {"slow"}
    assert find_beaten([fast, drifted, slow]) == set()
    assert "FP32 demo:digits was up to 50 % slower" in " ".join(describe_comparison([fast, drifted, slow]))


def test_it_is_the_same_as_comparing_all_pairs() -> None:
    random = Random(0)
    rows = []
    for number in range(120):
        latency, width = random.uniform(1, 9), random.uniform(0.01, 0.4)
        rows.append(row(
            f"t{number}", model_digest=f"w{number % 3}", deployed=float(random.randint(80, 90)), latency_ms=latency,
            latency_ci95=((1 - width) * latency, (1 + width) * latency), reference_p50_ms=random.uniform(9, 11),
            group=random.randint(1, 2), doubts=("latency: …",) if number % 7 == 0 else (),
        ))  # fmt: skip

    def drift(one: SweepRow) -> float:
        p50s = [o.reference_p50_ms or 0 for o in rows if o.model_digest == one.model_digest and not o.doubts]
        return max(p50s) / min(p50s)

    def beats(other: SweepRow, one: SweepRow) -> bool:
        wider = 1.0 if other.model_digest == one.model_digest else drift(other) * drift(one)
        is_able = other.group == one.group and other.valid and (other.deployed or 0) >= (one.deployed or 0)
        return is_able and (other.latency_ci95 or (0, 0))[1] * wider < (one.latency_ci95 or (0, 0))[0]

    expected = {one.name for one in rows if not one.doubts and any(beats(other, one) for other in rows)}
    assert find_beaten(rows) == expected
    assert 20 < len(expected) < 100


@pytest.mark.parametrize(
    "other", [{"input_shape": (3, 448, 448)}, {"outputs": ("logits", "features")}, {"model_code": "c2"}]
)
def test_each_form_of_a_model_has_a_reference_of_its_own(other: dict[str, Any]) -> None:
    """The digest of the weights is the same at every image size; the time of the reference is not."""
    small = record("small", input_shape=(3, 224, 224), outputs=("logits",), reference_p50_ms=10.0, speedup=2.0)
    facts = {"input_shape": (3, 224, 224), "outputs": ("logits",), **other}
    large = record("large", reference_p50_ms=40.0, speedup=2.0, **facts)
    rows = compare([small, large])
    assert [one.latency_ms for one in rows] == [5.0, 20.0]
    assert [one.front for one in rows] == [True, False]
    assert rows[0].group == rows[1].group, "they are compared, each by its own latency"
    assert "slower in some trials" not in " ".join(describe_comparison(rows))


def test_the_reference_of_a_disturbed_bench_does_not_count() -> None:
    calm = record("calm", reference_p50_ms=10.0, speedup=2.0)
    disturbed = record("disturbed", reference_p50_ms=30.0, speedup=2.0, doubts=("latency: other processes ran",))
    other = record("other", model_digest="w2", model="other")
    rows = compare([calm, disturbed, other])
    assert [one.latency_ms for one in rows[:2]] == [5.0, 5.0], "30 ms is neither in the median nor in the drift"
    assert "slower in some trials" not in " ".join(describe_comparison(rows))
    (alone,) = compare([disturbed])
    assert alone.latency_ms == 15.0, "there is no better one"


def test_a_thousand_trials_take_no_time_of_the_budget() -> None:
    """Twenty models of fifty trials each. The work grows with their number, not with its square or cube."""
    records = [
        record(
            f"t{n}", model_digest=f"w{n % 20}", deployed=float(n % 97), speedup=1 + n % 31,
            speedup_ci95=(0.9 * (1 + n % 31), 1.1 * (1 + n % 31)),
        )
        for n in range(1000)
    ]  # fmt: skip
    started = time.process_time()
    rows = compare(records)
    seconds = dict.fromkeys((one.name for one in rows), 20.0)
    chosen, beaten = choose_longer(rows, seconds, left_s=1e9), find_beaten(rows)
    assert chosen is not None
    assert chosen not in beaten
    assert 700 < len(beaten) < 1000
    assert time.process_time() - started < 2, "about 0.1 s; comparing all pairs takes minutes"
