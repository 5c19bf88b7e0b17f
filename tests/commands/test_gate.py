"""The gate on real artifacts: a folder is timed in turns, a file is compared with, and the verdict is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.evidence import bench, timed_bench
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.commands.gate import before
from vitdeploy.commands.gate import gate as gating
from vitdeploy.errors import MeasureError, RecipeError, TargetUnavailable, UsageError
from vitdeploy.evidence import Bench, Gate, Interval
from vitdeploy.frozen import replace
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure import latency
from vitdeploy.progress import Silent
from vitdeploy.recipe import BenchSpec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    recipe = replace(recipes.compose("demo:digits", target="openvino"), bench=BenchSpec(seconds=0.5))
    return export(recipe, tmp_path_factory.mktemp("gating") / "digits", Silent()).artifact


@pytest.fixture
def artifact(made: Artifact, copy: Callable[[Artifact], Artifact]) -> Artifact:
    return copy(made)


def statuses(gate: Gate) -> dict[str, str]:
    return {check.name: check.status for check in gate.checks}


def store_timing(artifact: Artifact, ratio: float) -> None:
    """Put a measurement beside an artifact, as `bench` would."""
    artifact.write_evidence(timed_bench(artifact, ratio))


def test_a_baseline_folder_is_timed_in_turns_and_the_samples_are_kept(made: Artifact, artifact: Artifact) -> None:
    found = gating.gate(artifact, {"max_slowdown_pct": 300.0}, Silent(), baseline=made.path)
    assert statuses(found)["slow-down"] in ("pass", "invalid")  # a busy machine makes it invalid, never a fail
    assert statuses(found)["attention fused as before"] == statuses(found)["size as before"] == "pass"
    assert found.timing is not None
    assert all(side.startup is not None and side.startup.peak_bytes for side in found.timing.runs)
    assert len(found.timing.runs[0].blocks) == len(found.timing.runs[1].blocks) >= 12
    assert Gate.model_validate(json.loads((artifact.path / "gate.json").read_text())) == found


def test_a_folder_that_may_not_be_compared_with_is_not_timed(
    made: Artifact, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("it was timed")

    monkeypatch.setattr(latency, "measure_reopened", never)
    other = tmp_path / "other"
    export(recipes.compose("demo:digits", target="openvino", batch=2), other, Silent())
    (check,) = gating.gate(artifact, {}, Silent(), baseline=other).checks
    assert (check.name, check.status) == ("baseline", "invalid")
    assert "target.batch was" in check.why


def test_where_nothing_can_be_timed_the_slow_down_is_invalid_and_the_rest_is_judged(
    made: Artifact, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object) -> None:
        raise TargetUnavailable("openvino is not installed", fix="Install it.")

    monkeypatch.setattr(before, "open_session", missing)
    found = gating.gate(artifact, {}, Silent(), baseline=made.path)
    assert statuses(found) == {
        "slow-down": "invalid", "attention fused as before": "pass", "size as before": "pass",
    }  # fmt: skip
    assert found.verdict == "invalid"


def test_a_baseline_that_cannot_be_saved_leaves_the_verdict(artifact: Artifact, tmp_path: Path) -> None:
    artifact.write_evidence(bench(2, 2, 2, "other processes used 40% of the CPU", manifest=artifact.digest))
    page = tmp_path / "gate.md"
    with pytest.raises(MeasureError, match="the latencies are in doubt, so no baseline is made of them"):
        gating.gate(artifact, {"min_fused_pct": 100.0}, Silent(), save_baseline=tmp_path / "b.json", markdown_file=page)
    assert "pass" in page.read_text()
    assert not (tmp_path / "b.json").exists()


def test_a_baseline_file_compares_speedups(artifact: Artifact, tmp_path: Path) -> None:
    store_timing(artifact, 3.0)
    saved = tmp_path / "baseline.json"
    gating.gate(artifact, {"min_speedup": 2.0}, Silent(), save_baseline=saved)
    for ratio, status in ((3.0, "pass"), (2.5, "fail"), (3.5, "pass")):
        store_timing(artifact, ratio)
        found = gating.gate(artifact, {"max_slowdown_pct": 5.0}, Silent(), baseline=saved)
        assert statuses(found)["slow-down"] == status, found.checks
        assert found.timing is None


def test_a_baseline_of_another_recipe_is_refused_with_the_key(artifact: Artifact, tmp_path: Path) -> None:
    store_timing(artifact, 3.0)
    saved = tmp_path / "baseline.json"
    gating.gate(artifact, {"min_speedup": 2.0}, Silent(), save_baseline=saved)
    known = baselines.read(saved)
    baselines.write(saved, replace(known, recipe={**known.recipe, "target.batch": '"9"'}))
    found = gating.gate(artifact, {}, Silent(), baseline=saved)
    assert statuses(found) == {"baseline": "invalid"}
    assert "target.batch was" in found.checks[0].why


def test_doubtful_speed_still_lets_fusion_be_judged(artifact: Artifact) -> None:
    artifact.write_evidence(bench(2, 2, 2, "other processes used 40% of the CPU", manifest=artifact.digest))
    gate = gating.gate(artifact, {"min_speedup": 1.0, "min_fused_pct": 100.0, "max_size_mib": 50.0}, Silent())
    assert statuses(gate) == {"speed-up": "invalid", "attention fused": "pass", "size (MiB)": "pass"}
    assert gate.verdict == "invalid"


def test_the_verdict_goes_where_ci_looks(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    page, junit, markdown = (tmp_path / name for name in ("page.md", "gate.xml", "gate.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    limits = {"min_fused_pct": 100.0, "max_size_mib": 0.001}
    gate = gating.gate(artifact, limits, Silent(), junit_file=junit, markdown_file=markdown)
    assert gate.verdict == "fail"
    out, err = capfd.readouterr()
    assert out == ""  # stdout belongs to --json
    assert err.startswith("::error title=vitdeploy gate%3A size (MiB)::")
    assert "❌ fail" in page.read_text()
    assert page.read_text().strip() == markdown.read_text().strip()
    suite = ET.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_slowdown_pct": 0.0}, "max_slowdown_pct should be greater than 0"),
        ({"min_speedup": -1.0}, "min_speedup should be greater than 0"),
        ({"max_memory_mib": float("inf")}, "max_memory_mib"),
        ({"min_fused_pct": 101.0}, "min_fused_pct should be less than or equal to 100"),
        ({"max_drop_pp": 100.0}, "max_drop_pp should be less than 100"),
        ({"max_size_mib": 20.0, "max_memory_mib": 10.0}, "max_memory_mib 10 and max_size_mib 20 contradict each other"),
    ],
)
def test_limits_that_mean_nothing_are_refused(made: Artifact, limits: dict[str, float], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        gating.gate(made, limits, Silent())


def test_a_baseline_is_not_overwritten_by_what_it_judges(made: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would be overwritten"):
        gating.gate(made, {}, Silent(), baseline=tmp_path / "b.json", save_baseline=tmp_path / "b.json")


def test_evidence_keeps_its_interval(artifact: Artifact) -> None:
    store_timing(artifact, 2.0)
    stored = Bench.model_validate_json((artifact.path / "bench.json").read_bytes())
    assert stored.own is not None
    speedup = Interval(ratio=2.0, ci95=(2.0, 2.0))
    assert stored.own.speedup is not None
    assert stored.own.speedup.ratio == pytest.approx(speedup.ratio)
    assert stored.own.speedup.ci95 == pytest.approx(speedup.ci95)
