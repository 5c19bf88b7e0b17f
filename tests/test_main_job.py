"""The main job on real input: export, inspect, eval, bench, gate, predict, on the targets that run here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from tests.counting import Counts, counts, key_of_graph
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, load
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.commands.gate.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.run import run
from vitdeploy.evidence import Bench
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent

ROOT = Path(__file__).parents[1]
FASHION = ROOT / "benchmarks" / "fashion_mnist"
__all__ = ["counts"]

DEIT = "timm:deit_tiny_patch16_224"


def test_demo_passes_its_gate_and_does_nothing_twice(counts: Counts, tmp_path: Path) -> None:
    outcome = run("demo", tmp_path / "demo", Silent(), cache=GraphCache(tmp_path / "cache"))
    hashed, exported = dict(counts.hashed), counts.exported
    artifact = load(tmp_path / "demo")
    assert exported == 1, "the report takes the float32 graph from the cache"
    assert all(hashed[Path(entry.path).name] <= 2 for entry in artifact.manifest.files), hashed
    assert counts.compiled[key_of_graph(artifact)] == 1
    assert outcome.audit.attention.fused == outcome.audit.attention.sites == 4
    assert outcome.audit.attention.evidence == "compiled"
    assert outcome.audit.linears.int8 == 17
    assert outcome.eval is not None
    assert outcome.eval.n == 600
    assert outcome.eval.metrics["top1"].reference >= 96
    assert outcome.bench is not None
    assert [r.name for r in outcome.bench.runs] == ["pytorch-fp32", "openvino-int8"]
    assert outcome.report == str(tmp_path / "demo" / "report.html")
    assert outcome.gate.verdict in Path(outcome.report).read_text(encoding="utf-8")
    checks = {check.name: check.status for check in outcome.gate.checks}
    assert checks["accuracy drop"] == checks["attention fused"] == "pass"
    if outcome.bench.valid:  # on a busy machine the gate must say invalid instead, and never fail
        assert outcome.gate.verdict == "pass"
    else:
        assert outcome.gate.verdict == "invalid"


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt-rtx"])
def test_every_attention_of_deit_fuses_and_keeps_its_numbers(target: str, tmp_path: Path) -> None:
    if target == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx")
    recipe = recipes.compose(DEIT, target=target, weights="random")
    result = export(recipe, tmp_path / "deit", Silent(), cache=GraphCache())
    summary = result.summary
    assert summary.weights == "random"
    if target == "tensorrt-rtx":
        assert (summary.parity.finite, summary.parity.batches) == (False, ()), "it cannot run here"
    else:
        assert summary.parity.cosine >= 0.9999
    assert summary.graph_parity is not None
    assert summary.graph_parity.cosine >= 0.9999
    attention = inspect(result.artifact).attention
    assert (attention.fused, attention.sites, attention.evidence) == (12, 12, "compiled")


def test_a_range_of_batches_runs_at_its_ends(demo: Callable[..., Artifact]) -> None:
    artifact = demo(target="onnxruntime", batch="1:4:8")
    assert set(artifact.manifest.export.parity.batches) == {1, 4, 8}
    with vitdeploy.load(artifact.path) as model:
        for batch in (1, 8):
            (logits,) = model.run(np.zeros((batch, 1, 32, 32), np.float32)).values()
            assert logits.shape == (batch, 10)


@pytest.mark.parametrize("target", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.long)])
def test_int8_of_a_real_classifier_keeps_its_accuracy(target: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = subprocess.run(
        [sys.executable, FASHION / "data.py", "-o", data], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(made.stderr.strip())
    recipe = recipes.compose(
        f"python:{FASHION / 'model.py'}:build",
        target=target,
        precision="int8",
        weights=str(FASHION / "vit.safetensors"),
        calibration=str(data / "calibration.npz"),
    )
    artifact = export(recipe, tmp_path / "fashion", Silent(), cache=GraphCache()).artifact
    evaluation = evaluate(artifact, str(data / "test.npz"), Silent(), limit=1000)
    assert evaluation.metrics["top1"].reference > 85
    verdict = gate(artifact, {"max_drop_pp": 2.0, "min_fused_pct": 100}, Silent())
    assert verdict.verdict == "pass", verdict


def test_dynamic_int8_needs_no_calibration(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]) -> None:
    artifact = copy(demo(target="onnxruntime", precision="int8-dynamic"))
    assert inspect(artifact).linears.int8 == 25  # q, k and v have a linear each
    assert evaluate(artifact, None, Silent()).agreement > 0.98


def test_predictions_are_the_digits_in_the_images(tmp_path: Path) -> None:
    artifact = vitdeploy.export("demo:digits", target="openvino", output=tmp_path / "digits")
    assert artifact.manifest.labels == tuple("0123456789")
    archive = np.load(ROOT / "vitdeploy" / "assets" / "digits.npz")
    chosen = archive["test"][:20]
    paths = []
    for index in chosen:
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(archive["images"][index]).save(paths[-1])
    with vitdeploy.load(artifact.path) as model:
        from_files = [p.top[0].index for p in model.predict(paths)]
        from_arrays = [p.top[0].index for p in model.predict([archive["images"][i] for i in chosen])]
    assert from_files == from_arrays
    assert np.mean(np.array(from_files) == archive["labels"][chosen]) >= 0.9


def test_without_tensorrt_the_bundle_says_what_to_do(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    recipe = recipes.compose("demo:digits", target="tensorrt")
    result = export(recipe, tmp_path / "bundle", Silent(), cache=GraphCache())
    bundle = result.artifact
    assert result.summary.stage == "bundle"
    assert any("vitdeploy compile" in note for note in result.summary.notes)
    rehearsed = importlib.util.find_spec("tensorrt_rtx") is not None
    assert inspect(bundle).attention.evidence == ("rehearsed" if rehearsed else "graph")
    assert gate(bundle, {"min_fused_pct": 100}, Silent()).verdict == "invalid"
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(vitdeploy.VitdeployError, match="TensorRT is not installed here"):
        compile_bundle(bundle, None, Silent())
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_benching_two_artifacts_times_both_against_the_reference(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    artifacts = [copy(demo(target=target)) for target in ("openvino", "onnxruntime")]
    found = bench(artifacts, Silent(), Plan(seconds=1))
    assert [r.name for r in found.runs] == ["pytorch-fp32", "openvino-fp32", "onnxruntime-fp32"]
    assert [r.role for r in found.runs] == ["reference", "artifact", "artifact"]
    assert found.runs[0].speedup is None
    assert all(r.speedup is not None for r in found.runs[1:])
    stored = Bench.model_validate(json.loads((artifacts[0].path / "bench.json").read_text()))
    assert stored == found


def test_a_baseline_judges_what_comes_after_it(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    artifact = copy(demo(target="openvino"))
    verdict = gate(artifact, {"max_slowdown_pct": 50.0}, Silent(), baseline=artifact.path)
    assert {check.name for check in verdict.checks} >= {"slow-down"}
    assert verdict.verdict in ("pass", "invalid")
