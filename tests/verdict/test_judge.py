import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evidence import MANIFEST, audit, bench, evaluation, run
from vitdeploy.evidence import Bench, Check, Gate, Interval, Metric, OperatingPoint
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure.baseline import Baseline
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict import Before, Case, judge

ALL = GateSpec(max_drop_pp=0.5, min_speedup=1.2, min_fused_pct=100)


def verdict(limits: GateSpec = ALL, **more: Any) -> Gate:
    facts: dict[str, Any] = {"audit": audit(), "bench": bench(), "evaluation": evaluation()}
    facts |= {"manifest": MANIFEST, "model_digest": "weights"} | more
    earlier = {key: facts.pop(key) for key in ("baseline", "interleaved", "untimed") if key in facts}
    return judge(Case(**facts), limits, Before(**earlier) if any(earlier.values()) else None)


def only(gate: Gate) -> Check:
    (check,) = gate.checks
    assert gate.verdict == check.status
    assert check.why
    return check


def baseline(low: float = 1.45, ratio: float = 1.5, high: float = 1.55, **more: Any) -> Baseline:
    facts = {
        "machine": "host",
        "target": "openvino",
        "precision": "int8",
        "model_digest": "weights",
        "recipe_digest": "r",
    }
    speedup = Interval(ratio=ratio, ci95=(low, high))
    return Baseline(**(facts | {"speedup": speedup, "data_digest": "data", "sites": 12, "fused": 12} | more))


def test_all_good_passes() -> None:
    gate = verdict()
    assert [(c.name, c.status) for c in gate.checks] == [
        ("accuracy drop", "pass"), ("speed-up", "pass"), ("attention fused", "pass"),
    ]  # fmt: skip
    assert (gate.verdict, gate.manifest) == ("pass", MANIFEST)


def test_no_limits_is_no_pass() -> None:
    check = only(verdict(GateSpec()))
    assert check.status == "invalid"
    assert "--max-drop" in check.why


def test_one_failure_outweighs_what_is_invalid() -> None:
    assert verdict(audit=audit(fused=3), bench=None).verdict == "fail"
    assert verdict(bench=None).verdict == "invalid"


@pytest.mark.parametrize(
    ("lower", "drop", "upper", "status", "told"),
    [
        (-0.1, 0.2, 0.5, "pass", "at most 0.50"),
        (0.51, 0.8, 1.0, "fail", "at least 0.51"),
        (0.5, 0.8, 1.0, "invalid", "decision needs about"),
        (-0.1, 0.1, 0.51, "invalid", "decision needs about 20,000 samples, not 10,000"),
        (0.1, 0.45, 0.8, "invalid", "decision needs about 68"),
        (0.1, 0.5, 0.8, "invalid", "no number of samples"),
    ],
)
def test_accuracy_is_judged_by_its_bounds(lower: float, drop: float, upper: float, status: str, told: str) -> None:
    check = only(verdict(GateSpec(max_drop_pp=0.5), evaluation=evaluation(lower, drop, upper)))
    assert (check.status, check.observed, check.limit) == (status, drop, 0.5)
    assert told in check.why


def test_accuracy_of_random_weights_means_nothing() -> None:
    check = only(verdict(GateSpec(max_drop_pp=0.5), random_weights=True))
    assert (check.status, check.why) == ("invalid", "random weights: accuracy means nothing")
    assert verdict(GateSpec(min_speedup=1.2), random_weights=True).verdict == "pass"


def test_a_fixed_threshold_means_nothing_with_random_weights() -> None:
    score = evaluation(-0.1, 0.2, 0.5).metrics["top1"]
    alike = Interval(ratio=1.0, ci95=(0.99, 1.01))
    point = OperatingPoint(threshold=0.5, score=score, reference=1_000, deployed=1_000, count=alike)
    limits = GateSpec(max_drop_pp=0.5, at_threshold=0.5)
    trained, random = (verdict(limits, operating_point=point, random_weights=weights) for weights in (False, True))
    assert trained.verdict == "pass"
    assert {(c.status, c.why) for c in random.checks} == {("invalid", "random weights: accuracy means nothing")}


def test_accuracy_without_samples_is_invalid() -> None:
    assert only(verdict(GateSpec(max_drop_pp=0.5), evaluation=evaluation(n=0))).status == "invalid"
    assert only(verdict(GateSpec(max_drop_pp=0.5), evaluation=evaluation(metrics={}))).status == "invalid"


def test_accuracy_in_doubt_is_invalid() -> None:
    check = only(verdict(GateSpec(max_drop_pp=0.5), evaluation=evaluation(doubts=("no better than chance",))))
    assert (check.status, check.why) == ("invalid", "doubtful: no better than chance")


def test_a_metric_that_is_not_finite_fails() -> None:
    nan = Metric(
        reference=70, deployed=math.nan, drop=math.nan, unit="points", ci95=(0, 0), lower95=math.nan, upper95=math.nan
    )
    check = only(verdict(GateSpec(max_drop_pp=0.5), evaluation=evaluation(metrics={"top1": nan})))
    assert check.status == "fail"


def test_outputs_that_are_not_finite_fail_whatever_the_limits() -> None:
    for limits in (GateSpec(), GateSpec(min_fused_pct=100), ALL):
        gate = verdict(limits, evaluation=evaluation(nonfinite=3))
        assert (gate.verdict, gate.checks[0].name) == ("fail", "finite outputs")
    broken = (run("pytorch-fp32", 20.0), run("int8", 10.0, Interval(ratio=2, ci95=(2, 2)), finite=False))
    assert verdict(bench=bench(1, 1, 1, "int8: outputs are not finite", runs=broken)).verdict == "fail"
    outdated = evaluation(nonfinite=3, manifest="old")  # about an earlier export
    assert verdict(GateSpec(min_fused_pct=100), evaluation=outdated).verdict == "pass"


@pytest.mark.parametrize(
    ("low", "ratio", "high", "status"),
    [(1.2, 1.5, 1.6, "pass"), (1.19, 1.5, 1.6, "invalid"), (0.9, 1.1, 1.2, "invalid"), (0.9, 1.0, 1.19, "fail")],
)
def test_speedup_is_judged_by_its_interval(low: float, ratio: float, high: float, status: str) -> None:
    check = only(verdict(GateSpec(min_speedup=1.2), bench=bench(low, ratio, high)))
    assert (check.status, check.observed, check.limit) == (status, ratio, 1.2)
    assert ("measure longer" in check.why) == (status == "invalid")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            bench(2, 2, 2, "other processes used 40% of the CPU", "more"),
            "doubtful: other processes used 40% of the CPU",
        ),
        (bench(2, 2, 2, valid=False), "no timing of two sides"),
        (bench(2, 2, 2, runs=()), "no reference"),
        (bench(2, 2, 2, runs=(run("openvino-int8", 10.0),)), "no reference"),
    ],
)
def test_speedup_in_doubt_is_invalid(found: Bench, told: str) -> None:
    check = only(verdict(GateSpec(min_speedup=1.2), bench=found))
    assert check.status == "invalid"
    assert told in check.why


@pytest.mark.parametrize(
    ("fused", "sites", "evidence", "status", "told"),
    [
        (12, 12, "compiled", "pass", "12 of 12"),
        (11, 12, "compiled", "fail", "blocks.11.attn: the scale is not constant"),
        (12, 12, "rehearsed", "invalid", "rehearsed"),
        (12, 12, "graph", "invalid", "graph"),
        (0, 0, "compiled", "invalid", "no attention site"),
    ],
)
def test_fusion(fused: int, sites: int, evidence: str, status: str, told: str) -> None:
    check = only(verdict(GateSpec(min_fused_pct=100), audit=audit(fused, sites, evidence)))
    assert check.status == status
    assert told in check.why


def test_a_bundle_proves_nothing() -> None:
    gate = verdict(stage="bundle", baseline=baseline())
    assert {c.status for c in gate.checks} == {"invalid"}
    assert len(gate.checks) == 5
    assert {c.why for c in gate.checks} == {
        "only a bundle, with nothing compiled yet: on the device run vitdeploy compile"
    }


@pytest.mark.parametrize("kind", ["audit", "bench", "eval"])
def test_absent_and_stale_evidence_is_invalid(kind: str) -> None:
    argument = {"eval": "evaluation"}.get(kind, kind)
    stale = {"audit": audit(manifest="old"), "bench": bench(manifest="old"), "eval": evaluation(manifest="old")}[kind]
    for more in (
        {argument: None},
        {argument: stale},
        {"missing": {kind: "gone"}},
        {argument: None, "missing": {kind: "gone"}},
    ):
        gate = verdict(**more)
        (undecided,) = [c for c in gate.checks if c.status != "pass"]
        assert (gate.verdict, undecided.status) == ("invalid", "invalid")
        assert "gone" in undecided.why if "missing" in more else f"{kind}.json" in undecided.why


@pytest.mark.parametrize(
    ("before", "now", "status"),
    [
        ((1.49, 1.5, 1.51), (1.49, 1.5, 1.51), "pass"),  # 0 %, -0.9 to 0.9
        ((1.69, 1.7, 1.71), (1.49, 1.5, 1.51), "fail"),
        ((1.40, 1.5, 1.60), (1.49, 1.5, 1.51), "invalid"),
        ((1.49, 1.5, 1.51), (1.40, 1.5, 1.60), "invalid"),
    ],
)
def test_slowdown_against_a_saved_baseline(before: Any, now: Any, status: str) -> None:
    gate = verdict(GateSpec(), bench=bench(*now), baseline=baseline(*before))
    slow, fused = gate.checks
    assert (slow.name, slow.status, slow.limit) == ("slow-down", status, 2.0)
    assert (fused.name, fused.status) == ("attention fused as before", "pass")
    assert gate.verdict == status
    assert slow.observed == pytest.approx(100 * (before[1] / now[1] - 1))


@pytest.mark.parametrize(
    ("low", "ratio", "high", "status"),
    [(0.99, 1.0, 1.01, "pass"), (0.90, 0.95, 0.97, "fail"), (0.95, 1.0, 1.05, "invalid")],
)
def test_slowdown_timed_in_turns_goes_first(low: float, ratio: float, high: float, status: str) -> None:
    far = baseline(3.9, 4.0, 4.1, machine="another")  # would fail, and is of another machine
    gate = verdict(GateSpec(max_slowdown_pct=2), baseline=far, interleaved=bench(low, ratio, high), bench=None)
    assert gate.checks[0].status == status
    assert gate.checks[0].observed == pytest.approx(100 * (1 / ratio - 1))
    alone = verdict(GateSpec(), interleaved=bench(low, ratio, high))
    assert only(alone).status == status


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"baseline": baseline(machine="another")}, "another machine"),
        ({"baseline": baseline(model_digest="other")}, "another model"),
        ({"baseline": baseline(data_digest="other")}, "other data"),
        ({"baseline": baseline(machine="another"), "bench": None, "machine": "host"}, "another machine"),
    ],
)
def test_a_foreign_baseline_is_invalid(more: dict[str, Any], told: str) -> None:
    check = only(verdict(GateSpec(max_slowdown_pct=2), **more))
    assert (check.name, check.status) == ("baseline", "invalid")
    assert told in check.why


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"baseline": None}, "--baseline"),
        ({"baseline": baseline(speedup=None)}, "saved without"),
        ({"baseline": baseline(), "bench": bench(1, 1, 1, "drifted")}, "drifted"),
        ({"baseline": baseline(), "bench": bench(runs=())}, "no timing of two sides"),
        ({"baseline": baseline(), "bench": None, "machine": "host"}, "bench.json"),
        ({"baseline": None, "interleaved": bench(1, 1, 1, "drifted")}, "drifted"),
        ({"baseline": None, "interleaved": bench(runs=())}, "no timing of two sides"),
    ],
)
def test_slowdown_that_cannot_be_decided(more: dict[str, Any], told: str) -> None:
    gate = verdict(GateSpec(max_slowdown_pct=2), **more)
    assert (gate.verdict, gate.checks[0].name, gate.checks[0].status) == ("invalid", "slow-down", "invalid")
    assert told in gate.checks[0].why


def test_an_artifact_that_was_not_evaluated_can_be_compared() -> None:
    tight = {"bench": bench(1.49, 1.5, 1.51), "baseline": baseline(1.49, 1.5, 1.51, data_digest="data")}
    assert verdict(GateSpec(), evaluation=None, **tight).verdict == "pass"


def test_fusion_must_not_get_lost() -> None:
    gate = verdict(GateSpec(), audit=audit(fused=11), baseline=baseline())
    assert (gate.verdict, gate.checks[-1].status) == ("fail", "fail")
    assert "the baseline had 12 of 12" in gate.checks[-1].why
    assert verdict(GateSpec(), audit=audit(11, 12, "rehearsed"), baseline=baseline()).verdict == "invalid"
    tight = {"bench": bench(1.49, 1.5, 1.51), "baseline": baseline(1.49, 1.5, 1.51, fused=None)}
    assert only(verdict(GateSpec(), **tight)).status == "pass"


def test_an_artifact_is_as_good_as_its_own_baseline() -> None:
    tight = bench(1.49, 1.5, 1.51)
    own = baselines.make(audit(), tight, evaluation(), machine="host", model_digest="weights", recipe_digest="r")
    assert verdict(GateSpec(), bench=tight, baseline=own).verdict == "pass"


limits = st.builds(
    GateSpec,
    max_drop_pp=st.none() | st.floats(0.01, 10),
    min_speedup=st.none() | st.floats(0.1, 10),
    min_fused_pct=st.none() | st.floats(0.1, 100),
    max_slowdown_pct=st.none() | st.floats(0.1, 50),
    max_growth_pct=st.none() | st.floats(0.1, 50),
    max_memory_mib=st.none() | st.floats(10, 500),
)
lacking = st.sampled_from(["audit", "bench", "eval"])


@given(limits, lacking, st.sampled_from(["none", "stale", "named", "bundle"]), st.booleans(), st.booleans())
def test_never_a_pass_without_the_evidence_that_a_limit_asks_for(
    limits: GateSpec, kind: str, how: str, random_weights: bool, with_baseline: bool
) -> None:
    more: dict[str, Any] = {"random_weights": random_weights, "baseline": baseline() if with_baseline else None}
    argument = {"eval": "evaluation"}.get(kind, kind)
    make: Any = {"audit": audit, "bench": bench, "eval": evaluation}[kind]
    more |= {
        "none": {argument: None},
        "stale": {argument: make(manifest="old")},
        "named": {"missing": {kind: "gone"}},
        "bundle": {"stage": "bundle"},
    }[how]
    gate = verdict(limits, **more)
    asked = {
        "audit": limits.min_fused_pct is not None or with_baseline,
        "bench": with_baseline
        or any(limit is not None for limit in (limits.min_speedup, limits.max_slowdown_pct, limits.max_memory_mib)),
        "eval": limits.max_drop_pp is not None,
    }
    if asked[kind] or how == "bundle" or limits.max_growth_pct is not None:  # no baseline here knows memory
        assert gate.verdict != "pass"
    if gate.verdict == "pass":
        assert gate.checks
        assert all(check.status == "pass" for check in gate.checks)


@given(limits)
def test_never_a_pass_without_any_evidence(limits: GateSpec) -> None:
    assert verdict(limits, audit=None, bench=None, evaluation=None).verdict == "invalid"
    missing = {"audit": "gone", "bench": "gone", "eval": "gone"}
    assert verdict(limits, missing=missing, baseline=baseline()).verdict == "invalid"
