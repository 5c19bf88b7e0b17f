"""An engine on a device: opened, refused, run and profiled, in versions and on GPUs that are not on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.compiling import Device, Given, compiled, opened
from tests.fakes.engine import FAKE_LAYER_MS
from tests.fakes.fixtures import CARD, ORIN, RELEASES
from tests.graphs import images
from vitdeploy.errors import ArtifactError, MeasureError, TargetUnavailable
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.profiling import profile
from vitdeploy.targets._tensorrt import gpu as _gpu

SITES = 2


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


def test_tensorrt_gives_outputs_in_the_manifests_order(device: Device, given: Given, tmp_path: Path) -> None:
    device("10.3")
    made = compiled(given(), tmp_path / "out")
    with opened(made) as session:
        own = session.run({"input": images()})
    backwards = tuple(reversed(own))
    with opened(replace(made, output_names=backwards)) as session:
        turned = session.run({"input": images()})
    assert tuple(turned) == backwards
    names = tuple(f"given {number}" for number in range(len(own)))
    with opened(replace(made, output_names=names)) as session:
        renamed = session.run({"input": images()})
    assert tuple(renamed) == names
    for old, new in zip(own, names, strict=True):
        np.testing.assert_array_equal(own[old], turned[old])
        np.testing.assert_array_equal(own[old], renamed[new])


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
    with pytest.raises(ArtifactError, match="has no readable record of what its engine was built for"):
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


def test_an_engine_from_an_nx_is_doubted_on_a_nano(
    device: Device, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both call their GPU Orin, and both have 8 multiprocessors."""
    monkeypatch.setattr(_gpu, "board_model", lambda: "NVIDIA Jetson Orin NX")
    device("10.3")
    made = compiled(given(), tmp_path / "out")
    monkeypatch.setattr(_gpu, "board_model", lambda: "NVIDIA Jetson Orin Nano")
    with opened(made) as session:
        assert (
            session.effective["doubt"]
            == "its kernels were chosen on NVIDIA Jetson Orin NX, this is NVIDIA Jetson Orin Nano"
        )
    assert [*(tmp_path / "cache").rglob("*Orin_NX*.timings")], "what was timed on one board is no news on another"


@pytest.mark.parametrize("release", RELEASES)
def test_the_profile_has_kernels_with_their_nodes(release: str, device: Device, given: Given, tmp_path: Path) -> None:
    trt = device(release)
    bundle = given()
    made = compiled(bundle, tmp_path / "out")
    with opened(made) as session:
        feeds = {"input": images()}
        expected, launched = session.run(feeds), trt.cuda.fakeLaunches()
        counters = session.profile(feeds)
        assert trt.cuda.fakeLaunches() == launched, "a CUDA graph hides its kernels"
        assert counters is not None
        assert counters.runs >= 5
        assert all(operator.ms == pytest.approx(FAKE_LAYER_MS) for operator in counters.operators)
        np.testing.assert_array_equal(session.run(feeds)["output_0"], expected["output_0"])
    found = profile("tensorrt-fp16", counters, bundle.structure)
    cores = [operator for operator in counters.operators if operator.name.startswith("_gemm_mha")]
    assert len(cores) == SITES
    assert all({node.rpartition("/")[2] for node in core.nodes} == {"qk", "softmax", "pv"} for core in cores)
    kernels = {operator.name: operator.role for operator in found.operators}
    assert {kernels[core.name] for core in cores} == {"attention"}
    assert all(found.roles[role] > 0 for role in ("qkv", "attention", "mlp", "norm"))


def test_a_kernel_that_the_plan_does_not_name_keeps_its_name(device: Device, given: Given, tmp_path: Path) -> None:
    device("11.4")
    made = compiled(given(), tmp_path / "out")
    (made.folder / "layers.txt").unlink()
    with opened(made) as session:
        counters = session.profile({"input": images()})
    assert counters is not None
    assert counters.operators
    assert all(operator.nodes == (operator.name,) for operator in counters.operators)


def test_no_room_for_a_profile_is_an_error_and_not_an_empty_one(device: Device, given: Given, tmp_path: Path) -> None:
    trt = device("10.16")
    made = compiled(given(), tmp_path / "out")
    with opened(made) as session:
        trt.faults.add("context")
        with pytest.raises(MeasureError, match="does not open a second time for its profile"):
            session.profile({"input": images()})
