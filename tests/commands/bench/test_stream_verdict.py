"""Only a certain gain replaces a simpler setting, and a doubtful comparison none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vitdeploy.commands.bench.stream_verdict import judge
from vitdeploy.evidence import Bench, Run, StreamSetting, TunedScenario
from vitdeploy.evidence.streams import Kept
from vitdeploy.frozen import replace
from vitdeploy.measure.latency import compute_figures

SETTINGS: Mapping[Kept, StreamSetting] = {
    "untuned": StreamSetting(streams=1, batch=1, threads=2),
    "hint": StreamSetting(streams=2, batch=1, threads=1, hint=True),
    "tuned": StreamSetting(streams=2, batch=4, threads=1),
}
ROUNDS = (2,) * 8


def make_run(name: str, query_ms: float, spread: float, seed: int) -> Run:
    rng = np.random.default_rng(seed)
    blocks = tuple(tuple(query_ms * (1 + spread * rng.standard_normal(3))) for _ in range(sum(ROUNDS)))
    figures = compute_figures(blocks, ROUNDS, 1, None)
    return Run(name=name, batch=1, blocks=blocks, rounds=ROUNDS, **figures._asdict())


def decide(
    queries_ms: Mapping[Kept, float],
    *,
    spread: float = 0.001,
    doubts: tuple[str, ...] = (),
    of_tuned: tuple[str, ...] = (),
    images: Sequence[int] = (32, 32, 32),
) -> TunedScenario:
    runs = tuple(make_run(name, ms, spread, seed) for seed, (name, ms) in enumerate(queries_ms.items()))
    runs = tuple(replace(run, doubts=of_tuned) if run.name == "tuned" else run for run in runs)
    doubts += of_tuned
    bench = Bench(valid=not doubts, doubts=doubts, runs=runs)
    settings = {name: SETTINGS[name] for name in queries_ms}
    return judge(bench, settings, images[: len(settings)], ())


@pytest.mark.parametrize(
    ("queries_ms", "kept"),
    [
        ({"untuned": 100, "hint": 80, "tuned": 60}, "tuned"),
        ({"untuned": 100, "hint": 60, "tuned": 80}, "hint"),
        ({"untuned": 100, "hint": 120, "tuned": 80}, "tuned"),
        ({"untuned": 100, "hint": 120, "tuned": 110}, "untuned"),
        ({"untuned": 100, "hint": 80}, "hint"),
        ({"untuned": 100, "tuned": 80}, "tuned"),
    ],
)
def test_the_fastest_is_kept(queries_ms: Mapping[Kept, float], kept: Kept) -> None:
    result = decide(queries_ms)
    assert (result.kept, result.setting, result.valid) == (kept, SETTINGS[kept], True)
    expected = queries_ms["untuned"] / queries_ms[kept]
    if kept == "untuned":
        assert result.over_untuned is None
        assert "nothing else is certainly faster" in result.why
    else:
        assert result.over_untuned is not None
        assert result.over_untuned.ratio == pytest.approx(expected, rel=0.01)
        assert str(SETTINGS[kept]) in result.why
    if "hint" in queries_ms and kept != "hint":
        assert result.over_hint is not None
        assert result.over_hint.ratio == pytest.approx(queries_ms["hint"] / queries_ms[kept], rel=0.01)
    else:
        assert result.over_hint is None


def test_a_gain_within_the_noise_changes_nothing() -> None:
    assert decide({"untuned": 100, "hint": 99.5, "tuned": 99}, spread=0.1).kept == "untuned"
    assert decide({"untuned": 100, "hint": 60, "tuned": 59.8}, spread=0.05).kept == "hint"


def test_a_doubtful_comparison_keeps_the_untuned_setting_and_claims_nothing() -> None:
    result = decide({"untuned": 100, "hint": 80, "tuned": 50}, doubts=("other processes used 90% of the CPU",))
    assert (result.kept, result.valid, result.over_untuned, result.over_hint) == ("untuned", False, None, None)
    assert "in doubt" in result.why
    assert result.doubts == ("other processes used 90% of the CPU",)
    assert len(result.runs) == 3, "the samples stay"


def test_a_doubt_about_one_setting_leaves_the_others() -> None:
    result = decide({"untuned": 100, "hint": 80, "tuned": 50}, of_tuned=("the speed-up of tuned varies by 20%",))
    assert (result.kept, result.valid) == ("hint", False)
    assert result.over_untuned is not None
    assert [run.speedup is None for run in result.runs] == [True, False, True]


def test_images_count_and_not_queries() -> None:
    """A batch of 3 answers 33 images in a query where others answer 32."""
    result = decide({"untuned": 100, "tuned": 100}, images=(32, 64))
    assert result.kept == "tuned"
    assert result.over_untuned is not None
    assert result.over_untuned.ratio == pytest.approx(2, rel=0.01)
    untuned, tuned = result.runs
    assert untuned.throughput_ips == pytest.approx(320, rel=0.01)
    assert tuned.throughput_ips == pytest.approx(640, rel=0.01)
    assert (tuned.name, tuned.batch) == ("tuned", 4)
