"""Held against an earlier artifact, and against limits of size and memory."""

import math
from typing import Any

import pytest

from tests.evidence import audit, bench, evaluation, run
from tests.verdict.test_judge import baseline, only, verdict
from vitdeploy.evidence import Bench, Check, GroupDrop, Interval, Release, Startup
from vitdeploy.frozen import replace
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure.baseline import Timing
from vitdeploy.recipe import GateSpec, Recipe
from vitdeploy.verdict._release import _check_worst

MIB = 1 << 20
TIMED = Timing(reference="pytorch-fp32", batch=1, threads=None, scenario="single-stream")


def weighed(peak_mib: float | None, **more: Any) -> Bench:
    """A tight measurement of an artifact with this peak memory."""
    startup = Startup(
        load_ms=100, first_ms=10, peak_bytes=None if peak_mib is None else int(peak_mib * MIB), engine_bytes=80 * MIB
    )
    own = run("openvino-int8", 10.0, Interval(ratio=1.5, ci95=(1.49, 1.51)), startup=startup)
    return bench(1.49, 1.5, 1.51, runs=(run("pytorch-fp32", 15.0), own), **more)


@pytest.mark.parametrize(
    ("limits", "name", "status", "told"),
    [
        (GateSpec(max_size_mib=10), "size (MiB)", "pass", "the deployed files have 9.0 MiB"),
        (GateSpec(max_size_mib=9), "size (MiB)", "pass", "the deployed files have 9.0 MiB"),
        (GateSpec(max_size_mib=8.9), "size (MiB)", "fail", "the deployed files have 9.0 MiB"),
        (
            GateSpec(max_memory_mib=120),
            "memory (MiB)",
            "pass",
            "peak of 110 MiB, 80 MiB of it before the model was opened",
        ),
        (GateSpec(max_memory_mib=110), "memory (MiB)", "pass", "peak of 110 MiB"),
        (GateSpec(max_memory_mib=109), "memory (MiB)", "fail", "peak of 110 MiB"),
    ],
)
def test_size_and_memory_have_limits(limits: GateSpec, name: str, status: str, told: str) -> None:
    check = only(verdict(limits, bench=weighed(110), size_bytes=9 * MIB))
    assert (check.name, check.status) == (name, status)
    assert told in check.why


def test_memory_that_was_not_measured_is_invalid() -> None:
    for more in ({"bench": weighed(None)}, {"bench": bench()}, {"bench": None}):
        check = only(verdict(GateSpec(max_memory_mib=100), **more))
        assert (check.name, check.status) == ("memory (MiB)", "invalid")
    assert only(verdict(GateSpec(max_size_mib=1))).status == "invalid"


@pytest.mark.parametrize(
    ("before", "now", "limit", "status"),
    [(100, 105, None, "pass"), (100, 106, None, "fail"), (100, 109, 10, "pass"), (100, 50, 1, "pass")],
)
def test_files_and_memory_may_grow_by_a_few_percent(before: float, now: float, limit: Any, status: str) -> None:
    known = baseline(1.49, 1.5, 1.51, size_bytes=before * MIB, peak_bytes=before * MIB)
    gate = verdict(GateSpec(max_growth_pct=limit), bench=weighed(now), size_bytes=now * MIB, baseline=known)
    grown = {check.name: check for check in gate.checks if check.name.endswith("as before")}
    assert grown["size as before"].status == grown["memory as before"].status == status
    assert grown["size as before"].observed == pytest.approx(now - before)


def test_growth_of_what_is_not_known_is_invalid_and_of_what_never_was_is_not_judged() -> None:
    known = baseline(1.49, 1.5, 1.51, size_bytes=MIB, peak_bytes=MIB)
    gate = verdict(GateSpec(), bench=bench(1.49, 1.5, 1.51), baseline=known)
    assert {c.status for c in gate.checks if c.name in ("size as before", "memory as before")} == {"invalid"}
    gate = verdict(GateSpec(), bench=weighed(100), size_bytes=MIB, baseline=baseline(1.49, 1.5, 1.51))
    assert not [c for c in gate.checks if c.name in ("size as before", "memory as before")]


def test_a_growth_limit_is_never_passed_by_for_want_of_a_baseline() -> None:
    asked = GateSpec(max_growth_pct=5, min_fused_pct=100)
    gate = verdict(asked)
    assert (gate.verdict, [(c.name, c.status) for c in gate.checks if c.status != "pass"]) == (
        "invalid", [("growth", "invalid")],
    )  # fmt: skip
    gate = verdict(asked, bench=weighed(100), size_bytes=MIB, baseline=baseline(1.49, 1.5, 1.51))
    unknown = {c.name: c.why for c in gate.checks if c.status == "invalid"}
    assert list(unknown) == ["size as before", "memory as before"]
    assert set(unknown.values()) == {"the baseline does not have this figure: save it again"}


def started(before: float | None, now: float | None) -> Bench:
    """The baseline and the artifact in turns, each with its peak in MiB."""

    def peak(mib: float | None) -> Startup:
        return Startup(load_ms=1, first_ms=1, peak_bytes=None if mib is None else int(mib * MIB))

    ratio = Interval(ratio=1.0, ci95=(0.99, 1.01))
    return bench(runs=(run("old", 10.0, startup=peak(before)), run("new", 10.0, ratio, startup=peak(now))))


@pytest.mark.parametrize(("now", "status"), [(104, "pass"), (160, "fail"), (None, "invalid")])
def test_memory_in_turns_is_of_this_machine_whatever_the_folder_says(now: float | None, status: str) -> None:
    known = baseline(machine="32 cores", size_bytes=MIB, peak_bytes=900 * MIB)
    gate = verdict(GateSpec(), bench=weighed(10), size_bytes=MIB, baseline=known, interleaved=started(100, now))
    found = {check.name: check.status for check in gate.checks}
    assert (found["slow-down"], found["memory as before"]) == ("pass", status)
    gate = verdict(GateSpec(), size_bytes=MIB, baseline=known, interleaved=started(None, 100))
    assert {c.name: c.status for c in gate.checks}["memory as before"] == "invalid"


def test_what_could_not_be_timed_in_turns_is_invalid_with_the_reason() -> None:
    known = baseline(machine="elsewhere", peak_bytes=900 * MIB)
    gate = verdict(GateSpec(), bench=weighed(10), baseline=known, untimed="openvino is not installed")
    found = {check.name: check for check in gate.checks}
    for name in ("slow-down", "memory as before"):  # its memory is that of another machine
        assert (found[name].status, found[name].why) == ("invalid", "openvino is not installed")


def test_a_speedup_over_another_artifact_is_no_speedup_over_float32() -> None:
    runs = (
        run("openvino-int8 (old)", 15.0, manifest="o" * 64),
        run("openvino-int8", 10.0, Interval(ratio=1.5, ci95=(1.49, 1.51))),
    )
    found = bench(runs=runs)
    check = only(verdict(GateSpec(min_speedup=1.2), bench=found))
    assert check.status == "invalid"
    assert "openvino-int8 (old), another artifact, not against pytorch-fp32" in check.why
    assert only(verdict(GateSpec(min_speedup=1.2), bench=found, against="/old", against_artifact=True)).status == "pass"


def recipe(**more: Any) -> Recipe:
    raw = {"model": "timm:deit", "target": {"kind": "openvino"}, "precision": {"kind": "int8"}} | more
    return Recipe.model_validate(raw)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"target": {"kind": "openvino", "batch": 4}}, "target.batch was"),
        ({"precision": {"kind": "int8", "keep": ["head"]}}, 'precision.keep was [], now it is ["head"]'),
        ({"model": {"spec": "timm:deit", "image_size": [384, 384]}}, "model.image_size was not set"),
        ({"preprocess": {"size": [32, 32]}}, "preprocess.channels was not set, now it is 3"),
        ({"target": {"kind": "openvino", "streams": 2}}, "target.streams was not set, now it is 2"),
        ({"tokens": {"merge": {3: 60}}}, 'tokens.merge was not set, now it is {"3": 60}'),
    ],
)
def test_another_recipe_is_no_regression(more: dict[str, Any], told: str) -> None:
    before, now = baselines.decisive_keys(recipe()), baselines.decisive_keys(recipe(**more))
    check = only(verdict(GateSpec(), baseline=baseline(1.49, 1.5, 1.51, recipe=before), recipe=now))
    assert (check.name, check.status) == ("baseline", "invalid")
    assert told in check.why
    assert "bench A B" in check.why


def test_limits_data_and_time_make_no_other_recipe() -> None:
    other = recipe(gate={"max_drop_pp": 1}, data={"evaluation": "x"}, bench={"seconds": 3})
    assert baselines.decisive_keys(other) == baselines.decisive_keys(recipe())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reference": "torch-compile"}, "reference was torch-compile, now it is pytorch-fp32"),
        ({"batch": 8}, "batch was 8, now it is 1"),
        ({"threads": 4}, "threads was 4"),
        ({"scenario": "offline"}, "scenario was offline"),
        ({"streams": "2"}, "streams was 2"),
    ],
)
def test_ratios_that_were_taken_otherwise_are_not_compared(change: dict[str, Any], told: str) -> None:
    known = baseline(1.49, 1.5, 1.51, timing=replace(TIMED, **change))
    tight = bench(1.49, 1.5, 1.51)
    check = only(verdict(GateSpec(), baseline=known, bench=tight))
    assert (check.name, check.status) == ("baseline", "invalid")
    assert told in check.why
    # What is timed in turns now does not care how the baseline was timed then.
    assert verdict(GateSpec(), baseline=known, bench=tight, interleaved=bench(0.99, 1.0, 1.01)).verdict == "pass"
    assert verdict(GateSpec(), baseline=baseline(1.49, 1.5, 1.51, timing=TIMED), bench=tight).verdict == "pass"


def test_the_artifacts_own_run_is_judged_whatever_was_timed_beside_it() -> None:
    runs = (
        run("pytorch-fp32", 15.0),
        run("openvino-fp32 (plain)", 3.0, Interval(ratio=5.0, ci95=(4.9, 5.1))),
        run("openvino-int8", 10.0, Interval(ratio=1.5, ci95=(1.49, 1.51)), manifest="m" * 64),
    )
    found = bench(runs=runs)
    assert found.own == replace(runs[2], role="artifact")
    assert found.reference == replace(runs[0], role="reference")
    assert [one.role for one in found.runs] == ["reference", "opponent", "artifact"]
    assert only(verdict(GateSpec(min_speedup=2), bench=found)).status == "fail"
    made = baselines.make(audit(), found, evaluation(), machine="host", model_digest="w", recipe_digest="r")
    assert made.speedup == runs[2].speedup
    assert made.timing == TIMED


def test_numbers_that_are_not_finite_in_turns_with_the_baseline_fail() -> None:
    broken = bench(
        0.99, 1.0, 1.01, "new: outputs are not finite",
        runs=(run("old", 10.0), run("new", 10.0, Interval(ratio=1, ci95=(1, 1)), finite=False)),
    )  # fmt: skip
    gate = verdict(GateSpec(), interleaved=broken, baseline=baseline())
    assert (gate.verdict, gate.checks[0].name) == ("fail", "finite outputs")
    assert gate.timing == broken


def test_a_group_without_a_metric_is_no_pass() -> None:
    """As the images of a group in which nothing is labelled, for a detector."""
    fine = GroupDrop(name="day", n=50, reference=60, deployed=60, drop=0, lower=-1, upper=1)
    empty = replace(fine, name="night", drop=math.nan, lower=math.nan, upper=math.nan)
    known = Release.model_construct(groups=(fine,), user_groups=True, task="detection")
    assert _check_worst(known, 5, "").status == "pass"
    check = _check_worst(known.model_copy(update={"groups": (fine, empty)}), 5, "")
    assert (check.status, "not defined on the samples of 'night'" in check.why) == ("invalid", True)


@pytest.mark.parametrize(("percent", "samples", "status"), [(99, 367, "invalid"), (99, 368, "pass"), (90, 36, "pass")])
def test_the_largest_of_few_samples_is_no_bound(percent: Any, samples: int, status: str) -> None:
    """All of 367 samples lie below the true p99 with a chance of 2.5 %."""
    own = run("openvino-int8", 10.0, Interval(ratio=1.5, ci95=(1.49, 1.51)))
    own = replace(own, samples=samples, p90_ms=11, p90_ci95=(10.5, 11.5), p99_ms=11, p99_ci95=(10.5, 11.5))
    timed = bench(1.49, 1.5, 1.51, runs=(run("pytorch-fp32", 15.0), own))
    check = only(verdict(GateSpec(max_latency_ms=12, latency_percentile=percent), bench=timed))
    assert check.status == status, check.why


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"speedup": Interval(ratio=1.0, ci95=(0, 2))}, "speedup: the interval 0 to 2 is not above 0"),
        ({"size_bytes": 10**400}, "size_bytes has more than 64 bits"),
    ],
)
def test_impossible_figures_of_a_baseline_are_invalid(more: dict[str, Any], reason: str) -> None:
    check = only(verdict(GateSpec(), baseline=replace(baseline(1.49, 1.5, 1.51), **more)))
    assert (check.status, reason in check.why) == ("invalid", True), check.why


def test_fusion_that_was_read_on_another_cpu_is_compared_only_if_all_is_fused() -> None:
    def check(before: str, now: str, fused: int) -> Check:
        saved = baseline(audited_on=before, fused=11)
        checks = verdict(GateSpec(), baseline=saved, audited_on=now, machine="host", audit=audit(fused)).checks
        return next(check for check in checks if check.name == "attention fused as before")

    assert check("a", "a", 11).status == check("", "a", 11).status == check("a", "", 11).status == "pass"
    assert check("a", "b", 12).status == "pass"
    other = check("a", "b", 11)
    assert other.status == "invalid"
    assert "read on another CPU (a, not b)" in other.why
