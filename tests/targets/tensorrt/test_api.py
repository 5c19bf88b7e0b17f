"""The differences between TensorRTs, read from the module in one place."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.tensorrt import module
from vitdeploy.errors import CompileError
from vitdeploy.targets._tensorrt.api import Api, release, trtexec_flags


@pytest.mark.parametrize(
    ("version", "weak", "complete", "opset"),
    [("10.3", True, False, 20), ("10.16", True, True, 23), ("11.4", False, True, 23)],
)
def test_the_features_of_each_version(version: str, weak: bool, complete: bool, opset: int) -> None:
    api = Api(module(version))
    features = (api.has_weak_typing, api.has_complete_strong_typing, api.newest_opset)
    assert features == (weak, complete, opset)
    assert api.backend == f"tensorrt {api.version}"
    assert api.has_timing_cache
    assert api.compute_capabilities == ()
    strong = api.network_flags("strong")
    assert strong == 1 << int(api.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_the_features_of_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    api = Api(trt)
    assert api.is_rtx
    assert api.product.startswith("TensorRT-RTX 1.")
    assert (api.has_weak_typing, api.has_complete_strong_typing, api.has_timing_cache) == (False, True, False)
    with pytest.raises(CompileError, match="no hardware compatibility level"):
        api.set_hardware_level(object(), "ampere-plus")


def test_weak_typing_is_refused_where_it_is_gone() -> None:
    assert Api(module("10.3")).network_flags("weak") == 0
    with pytest.raises(CompileError, match=r"TensorRT 11\.4.* builds strongly typed networks only"):
        Api(module("11.4")).network_flags("weak")


@pytest.mark.parametrize(("version", "known"), [("10.3", False), ("10.16", True), ("11.4", True)])
def test_hardware_levels_are_guarded(version: str, known: bool) -> None:
    trt = module(version)
    config: Any = trt.IBuilderConfig(None)
    Api(trt).set_hardware_level(config, "none")
    Api(trt).set_hardware_level(config, "ampere-plus")
    assert config.hardware_compatibility_level is trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if known:
        Api(trt).set_hardware_level(config, "same-compute-capability")
        assert config.hardware_compatibility_level is trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    else:
        with pytest.raises(CompileError, match="same-compute-capability"):
            Api(trt).set_hardware_level(config, "same-compute-capability")


@pytest.mark.parametrize(
    ("text", "numbers"), [("10.16.2.8", (10, 16, 2, 8)), ("10.3.0", (10, 3, 0)), ("11.4rc1", (11, 4)), ("dev", ())]
)
def test_versions_compare_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def test_trtexec_flags_of_10_are_the_defaults_of_11() -> None:
    assert trtexec_flags("10.3.0") == ("--useCudaGraph", "--useSpinWait")
    assert trtexec_flags("10.16.2") == ("--useCudaGraph", "--useSpinWait")
    assert trtexec_flags("11.0.0") == ("--includeDataTransfers",)
