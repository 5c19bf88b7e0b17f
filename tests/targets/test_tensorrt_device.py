"""TensorRT on a device: built, audited, refused and run, on a GPU and in versions that are not on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.fakes.fixtures import CARD, ORIN, RELEASES
from tests.graphs import images
from vitdeploy import targets
from vitdeploy.errors import ArtifactError, CompileError, MeasureError, QuantizeError, RecipeError, TargetUnavailable
from vitdeploy.evidence import Audit
from vitdeploy.graph.runner import OnnxSession
from vitdeploy.recipe import TargetSpec
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._tensorrt_inspector import parse_inspector
from vitdeploy.targets._tensorrt_plan import parse_plan
from vitdeploy.targets._tensorrt_record import load_record
from vitdeploy.targets._tensorrt_session import engine_information

SITES, NORMS = 2, 5
Given = Callable[..., Bundle]
Device = Callable[..., Any]


def target(**options: Any) -> targets.Target:
    return targets.find(TargetSpec(kind="tensorrt", **options))


def compiled(bundle: Bundle, folder: Path, **options: Any) -> Compiled:
    folder.mkdir(exist_ok=True)
    return target(**options).compile(bundle, folder)


def audited(bundle: Bundle, made: Compiled) -> Audit:
    return target().audit(bundle, made)


def opened(made: Compiled, precision: str = "fp16") -> Session:
    return target().open(made, precision, None)


@pytest.fixture
def given(bundle: Given) -> Given:
    return lambda precision="fp16", kind="dynamo": bundle(target(), precision, kind)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
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
        assert audit.linears.fp16 == audit.engine.gemms["fp16"] == linears
    assert audit.engine.reformats > 0
    assert audit.doubts == ()
    assert trt.built == [
        {"strong": True, "flags": [], "workspace": None, "level": 3, "hardware": "NONE", "timed": 0},
    ]  # fmt: skip


@pytest.mark.parametrize("gpu", [ORIN, CARD], ids=["shared", "copied"])
@pytest.mark.parametrize("release", RELEASES)
def test_runs_with_the_graphs_numbers(release: str, gpu: Any, device: Device, given: Given, tmp_path: Path) -> None:
    device(release, **gpu)
    bundle = given()
    with opened(compiled(bundle, tmp_path / "out")) as session, OnnxSession(bundle.graph) as plain:
        for seed in range(3):
            feeds = {"input": images(1, seed)}
            outputs, expected = session.run(feeds), plain.run(feeds)
            assert list(outputs) == list(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(outputs[name], value, rtol=1e-3, atol=1e-3)
        assert session.effective["cuda_graph"] == "yes"
        assert session.effective["memory"] == ("shared" if gpu is ORIN else "copied")
        assert session.name == "tensorrt-fp16"
        assert getattr(session, "device_ms", 0.0) > 0
    outputs["output_0"][...] = 0  # the caller's own, whatever became of the engine


def test_runs_without_a_graph_where_none_can_be_captured(device: Device, given: Given, tmp_path: Path) -> None:
    trt = device("10.3")
    made = compiled(given(), tmp_path / "out")
    trt.cuda.fakeRefuseCapture(1)
    launched = trt.cuda.fakeLaunches()
    with opened(made) as session:
        assert np.isfinite(session.run({"input": images()})["output_0"]).all()
        assert session.effective["cuda_graph"].startswith("no: ")
    assert trt.cuda.fakeLaunches() == launched


def test_a_varying_batch_is_prepared_anew(device: Device, given: Given, tmp_path: Path) -> None:
    device("10.16")
    bundle = given(kind="dynamo-batch")  # 1:2:4
    with opened(compiled(bundle, tmp_path / "out")) as session, OnnxSession(bundle.graph) as plain:
        for batch in (1, 4, 4, 2):
            feeds = {"input": images(batch, batch)}
            expected = plain.run(feeds)["output_0"]
            np.testing.assert_allclose(session.run(feeds)["output_0"], expected, rtol=1e-3, atol=1e-3)
        with pytest.raises(MeasureError, match=r"does not take input of shape \[5, 3, 32, 32\]"):
            session.run({"input": images(5)})


@pytest.mark.parametrize(
    ("gpu", "release", "why"),
    [
        ({"name": "NVIDIA AGX Orin", "multiprocessors": 16}, "10.3", r"built on Orin \(sm87, 8 .*this is NVIDIA AGX"),
        ({"multiprocessors": 4}, "10.3", "this is Orin .sm87, 4 multiprocessors"),
        ({"sm": 110}, "10.3", "sm110"),
        ({}, "10.16", r"built by tensorrt 10\.3\.0, and this machine has tensorrt 10\.16"),
        ({}, "11.4", r"built by tensorrt 10\.3\.0"),
    ],
)
def test_a_foreign_engine_is_refused_before_it_is_opened(
    gpu: Any, release: str, why: str, device: Device, given: Given, tmp_path: Path
) -> None:
    device("10.3")
    made = compiled(given(), tmp_path / "out")
    trt = device(release, **gpu)
    del trt.Runtime
    with pytest.raises(TargetUnavailable, match=why) as caught:
        opened(made)
    assert "vitdeploy compile" in caught.value.fix


def test_an_engine_of_which_nothing_is_known_is_refused(device: Device, given: Given, tmp_path: Path) -> None:
    device("10.3")
    made = compiled(given(), tmp_path / "out")
    (made.folder / "engine.json").write_text("{}")
    with pytest.raises(ArtifactError, match="does not tell what its engine was built for"):
        opened(made)


def test_portable_engines_are_opened_elsewhere(device: Device, given: Given, tmp_path: Path) -> None:
    device("10.3")
    made = compiled(given(), tmp_path / "a", version_compatible=True)
    device("10.16")
    with opened(made) as session:
        session.run({"input": images()})
    device("11.4")
    with pytest.raises(TargetUnavailable, match=r"built by tensorrt 10\.3"):
        opened(made)
    device("11.4", **CARD)
    made = compiled(given(), tmp_path / "b", hardware_compatibility="same-compute-capability")
    device("11.4", **CARD | {"name": "NVIDIA RTX A6000", "multiprocessors": 84})
    with opened(made) as session:
        session.run({"input": images()})


def test_another_power_mode_is_doubted_not_refused(device: Device, given: Given, tmp_path: Path) -> None:
    device("10.3", power_mode="15W")
    made = compiled(given(), tmp_path / "out")
    device("10.3", power_mode="MAXN")
    with opened(made) as session:
        assert "power mode 15W" in session.effective["doubt"]


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
    assert audited(bundle, made).doubts[0].startswith("built weakly typed, where TensorRT chooses the precision")
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
        compiled(replace(given("fp16"), precision="int8"), tmp_path / "out")


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


def test_the_inspector_tells_what_the_log_told(device: Device, given: Given, tmp_path: Path) -> None:
    bundle = given("int8")
    for release in RELEASES:
        trt = device(release)
        made = compiled(bundle, tmp_path / release)
        logged = parse_plan((made.folder / "layers.txt").read_text().split("\n"))
        inspected = parse_inspector(engine_information(trt, (made.folder / made.runs).read_bytes()))
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


def test_an_engine_without_room_to_run_says_so(device: Device, given: Given, tmp_path: Path) -> None:
    trt = device("10.3")
    made = compiled(given(), tmp_path / "out")
    trt.faults.add("context")
    with pytest.raises(TargetUnavailable, match="does not open"):
        opened(made)
    trt.faults.clear()
    device("10.3", memory=1000)
    with pytest.raises(MeasureError, match="out of memory"), opened(made) as session:
        session.run({"input": images()})


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
