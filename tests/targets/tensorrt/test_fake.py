"""The fake TensorRT is as strict as the real bindings: a version has only its own members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.fixtures import RELEASES
from tests.fakes.guarded import Callback, Guarded
from tests.fakes.tensorrt import _BEHAVIOUR, SURFACE, module

REMOVED_IN_11 = [
    ("Builder", "platform_has_fast_fp16"), ("IBuilderConfig", "int8_calibrator"),
    ("IBuilderConfig", "set_calibration_profile"), ("ICudaEngine", "device_memory_size"),
    ("ICudaEngine", "create_execution_context_without_device_memory"), ("ILayer", "precision"),
    ("ITensor", "dynamic_range"), ("OnnxParser", "supports_model"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "member"), REMOVED_IN_11)
def test_what_11_removed_is_in_10_and_not_in_11(kind: str, member: str) -> None:
    for release in RELEASES:
        assert (member in SURFACE[release][kind]) is release.startswith("10"), release


def test_a_removed_member_fails_and_so_does_setting_it() -> None:
    trt = module("11.4")
    config = trt.IBuilderConfig(None)
    with pytest.raises(AttributeError, match=r"TensorRT 11\.4: 'IBuilderConfig' object has no attribute 'int8_calib"):
        config.int8_calibrator = None
    assert not hasattr(config, "int8_calibrator")
    assert not hasattr(trt.BuilderFlag, "FP16")
    assert not hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")


def test_a_number_is_no_enum_member() -> None:
    for release in RELEASES:
        trt = module(release)
        with pytest.raises(TypeError, match="is no BuilderFlag"):
            trt.IBuilderConfig(None).set_flag(int(trt.BuilderFlag.TF32))
    flags = {release: int(module(release).NetworkDefinitionCreationFlag.STRONGLY_TYPED) for release in RELEASES}
    assert flags == {"10.3": 1, "10.16": 1, "11.4": 0}, "the reason for using members"


def test_what_the_fake_does_the_real_one_has(device: Callable[..., Any]) -> None:
    """Every public method of the fake is a member of at least one recorded version."""
    for name, behaviour in _BEHAVIOUR.items():
        done = {m for m in vars(behaviour) if not m.startswith("_")}
        had = set().union(*(SURFACE[release][name] for release in RELEASES))
        assert done <= had, f"{name}: {done - had}"


def test_a_logger_has_to_call_its_constructor(device: Callable[..., Any]) -> None:
    trt = device("10.3")

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            pass

        def log(self, severity: Any, msg: str) -> None:
            pass

    with pytest.raises(TypeError, match="must be called"):
        trt.Builder(Logger())
    assert issubclass(Callback, Guarded)
