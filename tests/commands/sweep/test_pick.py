"""The language of `--pick`: the one trial that it means, and errors that say what is wrong where."""

from __future__ import annotations

import pytest

from tests.commands.sweep.rows import MIB, row
from vitdeploy.commands.sweep.pick import MEASURES, parse_pick, pick
from vitdeploy.errors import UsageError

SMALL = row("small", size_bytes=5 * MIB, latency_ms=8.0, drop=0.4, precision="int4-weights")
FAST = row("fast", size_bytes=20 * MIB, latency_ms=4.0, drop=0.5, speedup=2.5, target="onnxruntime")
EXACT = row("exact", size_bytes=40 * MIB, latency_ms=9.0, drop=0.0, deployed=91.0, precision="fp32")
LOSSY = row("lossy", size_bytes=4 * MIB, latency_ms=2.0, drop=3.0)
DOUBTFUL = row("doubtful", latency_ms=1.0, doubts=("latency: other processes ran",))
FAILED = row("failed", status="failed", latency_ms=0.1)
ROWS = (DOUBTFUL, FAILED, SMALL, FAST, EXACT, LOSSY)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("min latency where drop <= 0.5 and size <= 20MiB", "fast"),
        ("min latency where drop <= 0.5 and size < 20 MiB", "small"),
        ("min latency where drop<0.5pp and size<=20971520B", "small"),
        ("min latency where drop <= 1 % and size <= 20MB", "small"),
        ("min latency", "lossy"),
        ("min p50 where latency >= 0.009s", "exact"),
        ("min latency where latency > 4000us and drop <= 0.5", "small"),
        ("max accuracy", "exact"),
        ("max speedup where speedup >= 2.1x", "fast"),
        ("min size where drop <= 0.5", "small"),
        ("min latency where precision = INT4-weights", "small"),
        ("min latency where target == onnxruntime", "fast"),
        ("min latency where precision != int8 and target != onnxruntime and drop <= .1e0", "exact"),
        ("min latency where fused >= 75% and agreement >= 99% and drop <= 0", "exact"),
    ],
)
def test_the_trial_that_is_meant(text: str, name: str) -> None:
    assert pick(parse_pick(text), ROWS)[0].name == name


def test_a_percentage_is_the_share_that_was_counted() -> None:
    """In binary 95 × 0.01 is more than 95 / 100."""
    expressions = [parse_pick(f"min size where agreement >= {percent}%") for percent in range(101)]
    assert [expression.conditions[0].value for expression in expressions] == [n / 100 for n in range(101)]


def test_only_valid_trials_count() -> None:
    with pytest.raises(UsageError, match="the figures of all 1 that were measured are in doubt"):
        pick(parse_pick("min latency"), (DOUBTFUL, FAILED))
    with pytest.raises(UsageError, match="none was measured"):
        pick(parse_pick("min latency"), (FAILED,))


def test_it_says_which_condition_nothing_passes() -> None:
    with pytest.raises(UsageError, match=r"of 4, drop <= 0\.5 leaves 3; size <= 1MiB leaves 0"):
        pick(parse_pick("min latency where drop <= 0.5 and size <= 1MiB"), ROWS)


def test_it_says_how_sure_the_choice_is() -> None:
    near = row("near", latency_ms=4.2, drop=0.1)
    best, remarks = pick(parse_pick("min latency where drop <= 0.5"), (FAST.model_copy(), near))
    assert best.name == "fast"
    assert "the latency of 1 more may be as low: near" in remarks
    wide = row("wide", drop=0.4, drop_ci95=(0.1, 0.7))
    assert pick(parse_pick("min latency where drop <= 0.5"), (wide,))[1] == [
        "its drop may be up to 0.70 (95 % interval), above 0.5"
    ]
    other = row("other", latency_ms=40.0, group=2)
    assert "several groups" in pick(parse_pick("min latency"), (FAST, other))[1][0]


def test_it_compares_speedups_by_their_own_intervals() -> None:
    """A reference that is slower makes latencies differ, and speed-ups not."""
    best = row("best", latency_ms=4.0, speedup=3.0, speedup_ci95=(2.5, 3.5))
    near = row("near", latency_ms=40.0, speedup=2.6, speedup_ci95=(2.4, 2.8))
    far = row("far", latency_ms=4.0, speedup=2.0, speedup_ci95=(1.9, 2.1))
    assert pick(parse_pick("max speedup"), (near, far, best)) == (best, ["the speed-up of 1 more may be as high: near"])
    assert pick(parse_pick("min speedup"), (best, far)) == (far, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("mni latency", r"begins with 'mni', not with min or max \(did you mean 'min'\?\)"),
        ("min", "after min a metric is missing"),
        ("min latncy", r"there is no metric 'latncy' \(did you mean 'latency'\?\)"),
        ("min target", "there is no metric 'target'"),
        ("min latency were drop < 1", r"after min latency comes 'were', not where \(did you mean 'where'\?\)"),
        ("min latency where", "a metric is missing"),
        ("min latency where drop", "drop has no limit"),
        ("min latency where drop 0.5", "after drop comes '0.5', not one of <=, <"),
        ("min latency where drop <=", "after drop <= a value is missing"),
        ("min latency where drop <= <", "after drop <= a value is missing"),
        ("min latency where drop <= few", "'few' is no number"),
        ("min latency where size <= 20", "size <= 20 has no unit"),
        ("min latency where size <= 20MiBs", r"size has no unit 'MiBs' \(did you mean 'MiB'\?\)"),
        ("min latency where drop <= 1 ms", "drop has no unit 'ms'"),
        ("min latency where drop <= 1 and", "a metric is missing"),
        ("min latency where drop <= 1 or size < 1MiB", "drop has no unit 'or'"),
        ("min latency where drop <= 1pp or size < 1MiB", "after drop <= 1pp comes 'or', not and"),
        ("min latency where precision >= int8", "precision is a word, which >= does not compare"),
        ("min latency where drop ! 1", "'!' is not a comparison"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        parse_pick(text)
    assert raised.value.fix


def test_every_metric_can_be_chosen_by() -> None:
    for name in MEASURES:
        assert pick(parse_pick(f"max {name}"), (EXACT,))[0].name == "exact", name
