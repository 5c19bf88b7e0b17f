"""The main job on real input: export, inspect, eval, bench, gate, predict, on the targets that run here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy import recipe as recipes
from vitdeploy.commands import gate as gating
from vitdeploy.commands.bench import bench as benching
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect import inspect as prove
from vitdeploy.commands.run import run
from vitdeploy.evidence import Bench
from vitdeploy.progress import Silent

ROOT = Path(__file__).parents[1]
FASHION = ROOT / "benchmarks" / "fashion_mnist"
DEIT = "timm:deit_tiny_patch16_224"


def test_demo_passes_its_gate(tmp_path: Path) -> None:
    outcome = run("demo", tmp_path / "demo", Silent())
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
    out = tmp_path / "deit"
    exported = export(recipes.compose(DEIT, target=target, weights="random"), out, Silent())
    assert exported.weights == "random"
    assert exported.parity.cosine >= 0.9999
    assert exported.graph_parity is not None
    assert exported.graph_parity.cosine >= 0.9999
    attention = prove.inspect(out).attention
    assert (attention.fused, attention.sites, attention.evidence) == (12, 12, "compiled")


def test_a_range_of_batches_runs_at_its_ends(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    exported = export(recipes.compose("demo:digits", target="onnxruntime", batch="1:4:8"), out, Silent())
    assert len(set(exported.parity.batches)) == 2
    with vitdeploy.load(out) as model:
        for batch in (1, 8):
            (logits,) = model.run(np.zeros((batch, 1, 32, 32), np.float32)).values()
            assert logits.shape == (batch, 10)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_int8_of_a_real_classifier_keeps_its_accuracy(target: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = subprocess.run(
        [sys.executable, FASHION / "data.py", "-o", data], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(made.stderr.strip())
    out = tmp_path / "fashion"
    recipe = recipes.compose(
        f"python:{FASHION / 'model.py'}:build",
        target=target,
        precision="int8",
        weights=str(FASHION / "vit.safetensors"),
        calibration=str(data / "calibration.npz"),
    )
    export(recipe, out, Silent())
    found = evaluate(out, str(data / "test.npz"), Silent(), limit=1000)
    assert found.metrics["top1"].reference > 85
    gate = gating.gate(out, {"max_drop_pp": 2.0, "min_fused_pct": 100}, Silent())
    assert gate.verdict == "pass", gate


def test_dynamic_int8_needs_no_calibration(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    export(recipes.compose("demo:digits", target="onnxruntime", precision="int8-dynamic"), out, Silent())
    assert prove.inspect(out).linears.int8 == 25  # q, k and v have a linear each
    assert evaluate(out, None, Silent()).agreement > 0.98


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
    out = tmp_path / "bundle"
    exported = export(recipes.compose("demo:digits", target="tensorrt"), out, Silent())
    assert exported.stage == "bundle"
    assert any("vitdeploy compile" in note for note in exported.notes)
    rehearsed = importlib.util.find_spec("tensorrt_rtx") is not None
    assert prove.inspect(out).attention.evidence == ("rehearsed" if rehearsed else "graph")
    gate = gating.gate(out, {"min_fused_pct": 100}, Silent())
    assert gate.verdict == "invalid"
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(vitdeploy.VitdeployError, match="TensorRT is not installed here"):
        compile_bundle(out, None, Silent())
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_benching_two_artifacts_times_both_against_the_reference(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, target in zip(paths, ("openvino", "onnxruntime"), strict=True):
        export(recipes.compose("demo:digits", target=target), path, Silent())
    found = benching.bench(paths, Silent(), benching.Plan(seconds=1))
    assert [r.name for r in found.runs] == ["pytorch-fp32", "openvino-fp32", "onnxruntime-fp32"]
    assert found.runs[0].speedup is None
    assert all(r.speedup is not None for r in found.runs[1:])
    stored = Bench.model_validate(json.loads((paths[0] / "bench.json").read_text()))
    assert stored == found


def test_a_baseline_judges_what_comes_after_it(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    export(recipes.compose("demo:digits", target="openvino"), out, Silent())
    gate = gating.gate(out, {"max_slowdown_pct": 50.0}, Silent(), baseline=out)
    assert {check.name for check in gate.checks} >= {"slow-down"}
    assert gate.verdict in ("pass", "invalid")
