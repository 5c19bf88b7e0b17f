"""The way of an artifact for ONNX Runtime on a GPU: a bundle here, audit and proof on a machine with one (a fake)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.conftest import run
from tests.fakes.fixtures import Machine
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.gate.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.predict import Deployed
from vitdeploy.errors import CompileError, TargetUnavailable
from vitdeploy.progress import Silent
from vitdeploy.runtime import reference

SITES = 4
QUIET = Silent()


@pytest.fixture
def bundle(demo: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Path]:
    """A copy of the digits as a bundle for a device."""

    def make(device: str = "cuda", precision: str = "fp16") -> Path:
        made = demo(target="onnxruntime", device=device, precision=precision)
        assert made.manifest.stage == "bundle", "made on a machine without a GPU"
        return Path(shutil.copytree(made.path, tmp_path / "bundle"))

    return make


def test_a_workstation_says_what_is_missing(no_gpu: None, bundle: Callable[..., Path]) -> None:
    folder = bundle()
    done = run("compile", folder)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: onnxruntime: this machine has no NVIDIA GPU (NVIDIA's driver does not load: ")
    assert done.err.rstrip().endswith("vitdeploy compile DIR --host ssh://USER@HOST")
    assert artifacts.load(folder).manifest.stage == "bundle"
    with pytest.raises(TargetUnavailable, match="is a bundle"):
        bench([artifacts.load(folder)], QUIET, Plan(seconds=0.1))


def test_the_machine_with_the_gpu_proves_it(gpu_machine: Machine, bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = bundle()
    gpu_machine()
    made = compile_bundle(artifacts.load(folder), tmp_path / "made", QUIET)
    assert (made.summary.stage, made.summary.parity.finite) == ("artifact", True)
    assert made.summary.parity.cosine > 0.9999
    artifact = artifacts.load(tmp_path / "made")
    assert [entry.path for entry in artifact.manifest.files if entry.path.endswith(".onnx")] == ["graph.onnx"]
    audit = inspect(artifact)
    assert (audit.attention.fused, audit.attention.evidence) == (SITES, "compiled")
    assert list(audit.providers) == ["CUDA"]
    table = run("inspect", artifact.path).out
    assert "4 MultiHeadAttention (flash attention)" in table
    assert "nodes run by" in table
    verdict = gate(artifact, {"min_fused_pct": 100.0}, QUIET)  # before the bench, which a busy machine makes doubtful
    assert verdict.verdict == "pass", verdict.checks
    assert evaluate(artifact, None, QUIET, limit=64).agreement == 1.0
    timing = bench([artifact], QUIET, Plan(seconds=0.2))
    run_of_artifact = next(r for r in timing.runs if r.role == "artifact")
    assert run_of_artifact.name == "onnxruntime-fp16"
    assert run_of_artifact.speedup is None, "PyTorch has no CUDA here, and a CPU is no fair opponent of a GPU"
    reason = "PyTorch on this machine has no CUDA, so it runs on the CPU, and the artifact does not"
    assert torch.cuda.is_available() or timing.missing == {"pytorch-fp32": reason}
    with Deployed(artifact.path) as deployed:
        assert len(deployed.predict(np.zeros((8, 8), np.uint8))[0].top) == 5


def test_both_sides_are_timed_on_the_gpu(
    gpu_machine: Machine, bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle()
    gpu_machine()
    compile_bundle(artifacts.load(folder), None, QUIET)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opened: list[str] = []

    def record(model: Any, *, threads: Any, device: str = "cpu", timed: bool = True) -> Any:
        opened.append(device)
        raise TargetUnavailable("this machine has no GPU", fix="")

    monkeypatch.setattr(reference, "open_reference", record)
    with pytest.raises(TargetUnavailable):
        reference.rebuild_reference(artifacts.load(folder), None)
    assert opened == ["cuda"]


def test_an_artifact_is_not_opened_where_it_would_run_on_the_cpu(
    gpu_machine: Machine, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bundle()
    state = gpu_machine()
    compile_bundle(artifacts.load(folder), None, QUIET)
    state.faults.add("no cuda")
    with pytest.raises(TargetUnavailable, match="is the package for CPUs, without CUDA"):
        bench([artifacts.load(folder)], QUIET, Plan(seconds=0.1))


def test_a_compilation_that_falls_back_leaves_the_bundle(gpu_machine: Machine, bundle: Callable[..., Path]) -> None:
    folder = bundle()
    state = gpu_machine()
    state.only_on_cpu.add("MultiHeadAttention")
    with pytest.raises(CompileError, match=r"blocks\.0\.attn and 3 more would run on the CPU, not on CUDA"):
        compile_bundle(artifacts.load(folder), None, QUIET)
    assert artifacts.load(folder).manifest.stage == "bundle"


def test_the_plugin_runs_the_same_model(gpu_machine: Machine, bundle: Callable[..., Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = bundle("trt-rtx")
    gpu_machine()
    made = compile_bundle(artifacts.load(folder), None, QUIET)
    assert made.summary.parity.cosine > 0.9999
    audit = inspect(artifacts.load(folder))
    assert (audit.attention.fused, audit.providers) == (SITES, {"NvTensorRTRTX": 1})
    assert audit.backend.endswith("with onnxruntime-ep-nv-tensorrt-rtx 0.5.0")
