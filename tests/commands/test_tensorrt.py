"""The way of a TensorRT artifact: bundle and rehearsal on a workstation, engine and proof on a device (a fake one)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes.fixtures import RELEASES
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy import targets
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.commands.gate.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.predict import Deployed
from vitdeploy.errors import QuantizeError, RecipeError, TargetUnavailable
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import ExportResult
from vitdeploy.pipeline.usage import describe_usage
from vitdeploy.progress import Silent
from vitdeploy.recipe import TaskSpec
from vitdeploy.targets import tensorrt

SITES = 4
FAKES = Path(__file__).parents[1] / "fakes"
QUIET = Silent()
Device = Callable[..., Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportResult]:
    """The digits as bundles, by precision, each made once."""

    @cache
    def bundle(precision: str) -> ExportResult:
        recipe = recipes.compose("demo:digits", target="tensorrt", precision=precision, batch="1:2:4")
        return export(recipe, tmp_path_factory.mktemp("bundle") / precision, QUIET, cache=GraphCache())

    return bundle


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_workstation_rehearses_the_build(precision: str, exported: Any) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    result = exported(precision)
    bundle, summary = result.artifact, result.summary
    assert summary.stage == "bundle"
    audit = inspect(bundle)
    assert (audit.attention.evidence, audit.attention.fused, audit.attention.sites) == ("rehearsed", SITES, SITES)
    assert audit.backend == f"tensorrt-rtx {rtx.__version__}"
    assert "does not prove what TensorRT does" in audit.doubts[0]
    assert any(f"attention fused {SITES} of {SITES}" in note for note in summary.notes)
    assert not (bundle.path / "engine.plan").exists()
    verdict = gate(bundle, {"min_fused_pct": 100.0}, QUIET)
    assert (verdict.verdict, verdict.checks[0].status) == ("invalid", "invalid"), "a rehearsal is no proof"


class _Listener(Silent):
    def __init__(self) -> None:
        self.events: list[str] = []

    def warn(self, message: str) -> None:
        self.events.append(message)

    def step(self, title: str, total: int | None = None) -> Any:
        self.events.append(title)
        return super().step(title, total)


def test_what_others_reported_is_named_before_the_build(exported: Any, device: Device, tmp_path: Path) -> None:
    result = exported("fp16")
    assert [fault.split(" with ")[0] for fault in result.summary.known_faults] == [
        "q, k and v of one attention are mixed up at batch 1"
    ]
    for release, generation, count in (("10.16", 110, 0), ("10.3", 87, 0), ("10.13", 110, 1)):
        trt = device("10.16" if release == "10.13" else release, sm=generation)
        trt.__version__ = "10.13.3.9" if release == "10.13" else trt.__version__
        listener = _Listener()
        made = compile_bundle(result.artifact, tmp_path / f"{release}-{generation}", listener)
        assert len(made.artifact.manifest.known_faults) == count
        named = [n for n, event in enumerate(listener.events) if event.startswith("reported by others: q, k and v")]
        build = next(n for n, event in enumerate(listener.events) if event.startswith("Compile and audit"))
        assert len(named) == count
        assert all(n < build for n in named)


def test_a_failed_rehearsal_is_told_and_leaves_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tensorrt, "_REHEARSED_FOR", {"fp16": "sm13"})
    recipe = recipes.compose("demo:digits", target="tensorrt")
    result = export(recipe, tmp_path / "out", QUIET, cache=GraphCache())
    bundle, summary = result.artifact, result.summary
    assert summary.stage == "bundle"
    assert any("the rehearsal failed" in note and "sm13" in note for note in summary.notes)
    assert inspect(bundle).attention.fused == 0


@pytest.mark.parametrize("release", RELEASES)
def test_the_device_finishes_and_proves_it(release: str, device: Device, exported: Any, tmp_path: Path) -> None:
    device(release)
    result = compile_bundle(exported("fp16").artifact, tmp_path / "out", QUIET)
    artifact, summary = result.artifact, result.summary
    assert summary.stage == "artifact"
    parity = artifact.manifest.device_parity
    assert parity is not None
    assert parity.cosine > 0.999
    assert any(note.startswith("on this device: cosine 0.999") or "cosine 1.0" in note for note in summary.notes)
    audit, _ = artifact.read_evidence(Audit)
    assert audit is not None
    assert (audit.attention.fused, audit.attention.evidence) == (SITES, "compiled")
    verdict = gate(artifact, {"min_fused_pct": 100.0}, QUIET)
    assert verdict.verdict == "pass"
    assert evaluate(artifact, None, QUIET, limit=40).agreement == 1.0
    with Deployed(artifact.path) as deployed:
        image = np.zeros((8, 8), np.uint8)
        assert len(deployed.predict(image)[0].top) == 5


def test_a_cxx_user_finds_what_to_feed(exported: Any) -> None:
    manifest = json.loads((exported("fp16").artifact.path / "manifest.json").read_text())
    usage = manifest["usage"]
    (image,) = usage["inputs"]
    assert (image["dtype"], image["layout"], image["shape"][1:]) == (
        "float32",
        "NCHW",
        manifest["inputs"][0]["shape"][1:],
    )
    assert image["bytes"] == 2 * 4 * int(np.prod(image["shape"][1:])), "at the batch to optimise for"
    assert "grey images: (x / 255 - mean) / std" in image["meaning"]
    assert usage["preprocessing"][0] == "decode to 8-bit one grey channel"
    assert "divide by 255" in usage["preprocessing"]
    assert "logits in the order of `labels`" in usage["outputs"][0]["meaning"]
    assert usage["batch"] == "1:2:4"
    assert usage["try_it"].startswith("trtexec --loadEngine=engine.plan --shapes=")
    name = image["name"]
    assert usage["build_it"] == (
        "trtexec --onnx=graph.onnx --saveEngine=engine.plan --stronglyTyped "
        f"--minShapes={name}:1x1x32x32 --optShapes={name}:2x1x32x32 --maxShapes={name}:4x1x32x32"
    )
    assert usage["post_processing"]["scores"] == usage["outputs"][0]["name"]


def test_what_the_outputs_are_is_the_tasks_to_say(exported: Any) -> None:
    manifest = exported("fp16").artifact.manifest
    target = targets.find(manifest.recipe.target)
    assert (
        describe_usage(manifest, target).answers
        == "classification: A class for each image, from scores (batch, classes)."
    )
    vectors = TaskSpec.model_validate({"kind": "embedding"})
    usage = describe_usage(replace(manifest, recipe=replace(manifest.recipe, task=vectors)), target)
    assert usage.answers.startswith("embedding: A vector for each image")
    assert [output.meaning for output in usage.outputs] == [""], "numbers of an embedding are no logits"


def test_options_are_the_devices_to_choose(device: Device, exported: Any, tmp_path: Path) -> None:
    trt = device("10.3")
    given = recipes.target_options(["workspace_bytes=268435456", "optimization_level=1"])
    compiled = compile_bundle(exported("fp16").artifact, tmp_path / "out", QUIET, options=given).artifact
    assert trt.built[-1] | {"workspace": 1 << 28, "level": 1} == trt.built[-1]
    kept = compiled.manifest
    assert kept.recipe.target.options == given
    assert kept.recipe_digest == kept.recipe.digest
    with pytest.raises(RecipeError, match=r"workspace_byte.*did you mean 'workspace_bytes'"):
        compile_bundle(exported("fp16").artifact, tmp_path / "no", QUIET, options={"workspace_byte": 1})
    for wrong in ("workspace_bytes", "=1"):
        with pytest.raises(RecipeError, match="is not KEY=VALUE"):
            recipes.target_options([wrong])


def test_an_int8_bundle_that_was_never_calibrated_is_refused(
    device: Device, exported: Any, copy: Any, tmp_path: Path
) -> None:
    device("10.3")
    bundle = copy(exported("fp16").artifact)
    target = replace(bundle.manifest.target, precision="int8")
    claimed = artifacts.seal(bundle.path, replace(bundle.manifest, target=target))
    with pytest.raises(QuantizeError, match="is int8, but it was never calibrated"):
        compile_bundle(claimed, tmp_path / "out", QUIET)


def test_bench_tells_the_devices_time_from_the_callers(
    device: Device, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = device("10.3").cuda
    artifact = compile_bundle(exported("fp16").artifact, tmp_path / "out", QUIET).artifact
    monkeypatch.setenv("PATH", str(FAKES), prepend=":")
    monkeypatch.setenv("FAKE_TRTEXEC", "10.3")
    monkeypatch.setenv("FAKE_TRTEXEC_SEEN", str(tmp_path / "seen"))
    found = bench([artifact], QUIET, Plan(seconds=0.3))
    own, outside = found.device
    assert (own.source, own.cuda_graph, outside.source) == ("session", "yes", "trtexec")
    assert 0 < own.device_p50_ms < own.end_to_end_p50_ms
    assert found.power is not None
    assert bool(found.power.rails) != bool(found.power.why)
    if not torch.cuda.is_available():
        assert found.runs[0].speedup is None
        reason = "PyTorch on this machine has no CUDA, so it runs on the CPU, and the artifact does not"
        assert found.missing == {"pytorch-fp32": reason}

    monkeypatch.setitem(sys.modules, "tensorrt", None)  # a board without the Python bindings
    alone = bench([artifact], QUIET, Plan(seconds=0.3))
    assert [run.name for run in alone.runs] == ["trtexec"]
    assert (alone.valid, alone.runs[0].speedup) == (False, None)
    assert "timed alone, by trtexec: TensorRT does not load" in alone.doubts[0]

    cuda.fakeDevice(b"Orin", 1, 87, 16, 1, 8 << 30)
    with pytest.raises(TargetUnavailable, match="TensorRT does not load"):  # an AGX Orin is not timed by trtexec either
        bench([artifact], QUIET, Plan(seconds=0.3))


def test_an_engine_is_proven_where_it_was_built_only(device: Device, exported: Any, tmp_path: Path) -> None:
    device("10.3")
    artifact = compile_bundle(exported("fp16").artifact, tmp_path / "out", QUIET).artifact
    device("10.16")
    with pytest.raises(TargetUnavailable, match=r"built by tensorrt 10\.3\.0, and this machine has tensorrt 10\.16"):
        bench([artifact], QUIET, Plan(seconds=0.1))
    assert inspect(artifact).attention.fused == SITES, "what it is can be read anywhere"
