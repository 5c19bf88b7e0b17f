"""TensorRT on a device: built, audited and refused, in versions that are not on this machine."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from tests.fakes.compiling import Device, Given, audited, compiled, target
from tests.fakes.fixtures import RELEASES
from vitdeploy import targets
from vitdeploy.errors import CompileError, MeasureError, QuantizeError, RecipeError
from vitdeploy.precision import kind_of
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets._tensorrt import cuda as _cuda
from vitdeploy.targets._tensorrt import gpu as _gpu
from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.plan import parse_plan
from vitdeploy.targets._tensorrt.record import load_record
from vitdeploy.targets._tensorrt.session import inspect_engine

SITES, NORMS = 2, 5


@pytest.mark.parametrize(
    ("release", "precision"), [*product(RELEASES, ["fp16", "int8"]), ("10.16", "bf16"), ("11.4", "bf16")]
)
def test_builds_and_audits(release: str, precision: str, device: Device, given: Given, tmp_path: Path) -> None:
    trt = device(release)
    bundle = given(precision)
    made = compiled(bundle, tmp_path / "out")
    assert made.backend == f"tensorrt {trt.__version__}"
    audit = audited(bundle, made)
    assert (audit.attention.fused, audit.attention.evidence) == (SITES, "compiled")
    linears = len(bundle.structure.linears)
    assert audit.engine is not None
    assert audit.engine.attention == SITES
    if precision == "int8":
        assert (audit.linears.int8, audit.engine.gemms["int8"]) == (linears - 1, linears - 1)
    else:
        assert getattr(audit.linears, precision) == audit.engine.gemms[precision] == linears
    assert audit.engine.reformats > 0
    assert audit.doubts == ()
    assert trt.built == [
        {"strong": True, "flags": [], "workspace": None, "level": 3, "hardware": "NONE", "timed": 0},
    ]  # fmt: skip


def test_a_tensorrt_that_is_too_old_is_refused_before_the_export(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JetPack 6.0 has TensorRT 8.6, without strongly typed networks."""
    trt = device("10.3")
    assert target().unavailable() is None
    monkeypatch.setattr(trt, "NetworkDefinitionCreationFlag", SimpleNamespace(EXPLICIT_BATCH=0))
    unavailable = target().unavailable()
    assert unavailable is not None
    assert "has no strongly typed networks" in unavailable.why
    assert "JetPack 6.1 or newer" in unavailable.fix


def test_only_10_3_falls_back_to_weak_typing_and_says_so(device: Device, given: Given, tmp_path: Path) -> None:
    for release in ("10.16", "11.4"):
        trt = device(release)
        trt.faults.add("strong typing")
        with pytest.raises(CompileError, match="did not build"):
            compiled(given(), tmp_path / release)
        assert [build["strong"] for build in trt.built] == [True]
    trt = device("10.3")
    trt.faults.add("strong typing")
    bundle = given("int8")
    made = compiled(bundle, tmp_path / "10.3")
    assert [(build["strong"], build["flags"]) for build in trt.built] == [(True, []), (False, ["INT8", "FP16"])]
    assert load_record(made.folder).typing == "weak"
    assert audited(bundle, made).doubts[0].startswith("built weakly typed (TensorRT chooses the precision")
    with pytest.raises(CompileError, match="did not build"):
        compiled(bundle, tmp_path / "strict", typing="strong")


def test_weak_typing_on_request(device: Device, given: Given, tmp_path: Path) -> None:
    trt = device("10.16")
    compiled(given(), tmp_path / "out", typing="weak")
    assert [(build["strong"], build["flags"]) for build in trt.built] == [(False, ["FP16"])]
    device("11.4")
    with pytest.raises(CompileError, match="strongly typed networks only"):
        compiled(given(), tmp_path / "none", typing="weak")


def test_out_of_memory_is_named_with_what_helps(device: Device, given: Given, tmp_path: Path) -> None:
    bundle = given()
    for release in RELEASES:
        trt = device(release)
        trt.faults.add("memory")
        with pytest.raises(CompileError, match=r"ran out of memory while building graph\.onnx \(14\.4 GiB") as caught:
            compiled(bundle, tmp_path / "out")
        for advice in ("workspace_bytes", "optimization_level", "swap"):
            assert advice in caught.value.fix
        assert len(trt.built) == 1, "what did not fit strictly would not fit weakly"
        compiled(bundle, tmp_path / "out", workspace_bytes=1 << 29, optimization_level=2)
        assert trt.built[-1] | {"workspace": 1 << 29, "level": 2} == trt.built[-1]


def test_timings_are_kept_for_this_machine_only(device: Device, given: Given, tmp_path: Path) -> None:
    bundle = given()

    def timed(release: str, **gpu: Any) -> int:
        trt = device(release, **gpu)
        compiled(bundle, tmp_path / "out")
        return int(trt.built[-1]["timed"])

    assert [timed("10.3"), timed("10.3")] == [0, 1]
    assert timed("10.3", power_mode="15W") == 0
    assert timed("10.3", multiprocessors=16) == 0
    assert timed("10.3", name="Orin NX") == 0
    assert timed("10.16") == 0
    assert timed("10.3") == 2
    trt = device("10.3")
    compiled(bundle, tmp_path / "out", timing_cache=False)
    assert trt.built[-1]["timed"] is None
    for path in (tmp_path / "cache" / "vitdeploy" / "tensorrt").iterdir():
        path.write_text('{"version": "9.0", "timed": 7}')
    assert timed("10.3") == 0, "one of another TensorRT is thrown away"


def test_int8_without_calibration_is_refused(device: Device, given: Given, tmp_path: Path) -> None:
    from dataclasses import replace

    device("10.3")
    with pytest.raises(QuantizeError, match="no Q/DQ pair"):
        compiled(replace(given("fp16"), numbers=kind_of("int8").numbers), tmp_path / "out")


def test_a_node_that_this_version_cannot_parse_is_named(device: Device, given: Given, tmp_path: Path) -> None:
    bundle = given()
    model = onnx.load(bundle.graph)
    node = next(n for n in model.graph.node if n.op_type == "Softmax")
    node.op_type = "Attention"
    onnx.save(model, bundle.graph)
    device("10.3")
    with pytest.raises(
        CompileError, match=rf"TensorRT 10\.3\.0 cannot parse the node '{node.name}' .Attention."
    ) as got:
        compiled(bundle, tmp_path / "out")
    assert "opset 20 or older" in got.value.fix


def test_the_inspector_agrees_with_the_log(device: Device, given: Given, tmp_path: Path) -> None:
    bundle = given("int8")
    for release in RELEASES:
        trt = device(release)
        made = compiled(bundle, tmp_path / release)
        logged = parse_plan((made.folder / "layers.txt").read_text().split("\n"))
        inspected = parse_inspector(inspect_engine(trt, (made.folder / made.runs).read_bytes()))
        assert inspected == logged
        assert len(logged) > 20


def test_a_silent_build_is_inspected_instead(device: Device, given: Given, tmp_path: Path) -> None:
    trt = device("10.16")
    trt.faults.add("silent")
    bundle = given()
    made = compiled(bundle, tmp_path / "out")
    assert audited(bundle, made).attention.fused == SITES


@pytest.mark.parametrize("release", RELEASES)
def test_precisions_are_known_where_shapes_vary(release: str, device: Device, given: Given, tmp_path: Path) -> None:
    device(release)
    bundle = given("int8", "dynamo-batch")
    made = compiled(bundle, tmp_path / "out")
    audit = audited(bundle, made)
    assert (audit.linears.int8, audit.linears.other) == (len(bundle.structure.linears) - 1, 0)
    assert audit.attention.fused == SITES
    assert ("N/A due to dynamic shapes" in (made.folder / "layers.txt").read_text()) == release.startswith("10")
    assert (made.folder / "layers.json").exists() == release.startswith("10")


def test_engines_for_other_gpus_are_refused_on_a_jetson(device: Device, given: Given, tmp_path: Path) -> None:
    device("11.4")
    with pytest.raises(CompileError, match="hardware_compatibility on discrete GPUs only"):
        compiled(given(), tmp_path / "out", hardware_compatibility="ampere-plus")


@pytest.mark.parametrize("release", RELEASES)
def test_a_build_reports_its_phases(release: str, device: Device, given: Given, tmp_path: Path) -> None:
    trt = device(release)
    said: list[str] = []
    target().compile(given(), tmp_path, said.append)
    assert said == [f"TensorRT {trt.__version__}: Building Engine"]


def test_gpu_properties_are_read_without_free_memory(device: Device) -> None:
    device("10.3", memory=0)
    with pytest.raises(MeasureError, match="out of memory"):
        _cuda.Cuda()
    assert _gpu.find_gpu().multiprocessors == 8


def test_a_library_that_does_not_load_is_not_available(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device("10.3")
    monkeypatch.setattr("vitdeploy.targets.tensorrt.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # what `import` then raises is an ImportError
    missing = target().unavailable()
    assert missing is not None
    assert missing.why.startswith("TensorRT does not load: ")


def test_availability_names_what_is_missing(device: Device) -> None:
    device("10.3")
    assert target().unavailable() is None
    device("10.3", count=0)
    missing = target().unavailable()
    assert missing is not None
    assert "no CUDA-capable device is detected" in missing.why


@pytest.mark.parametrize("name", ["DLA", "dla:0"])
@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_the_dla_is_refused_with_the_reason(kind: str, name: str) -> None:
    with pytest.raises(RecipeError, match="the DLA runs none of a Vision Transformer's LayerNorm, GELU and attention"):
        targets.find(TargetSpec(kind=kind, device=name))
