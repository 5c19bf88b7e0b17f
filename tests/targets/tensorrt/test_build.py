"""Building engines with TensorRT-RTX, which compiles without a GPU: one attention takes a tenth of a second."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitdeploy.errors import CompileError  # noqa: E402
from vitdeploy.targets._tensorrt.api import Api  # noqa: E402
from vitdeploy.targets._tensorrt.build import BuildOptions, BuiltEngine, build_engine  # noqa: E402
from vitdeploy.targets._tensorrt.plan import PlanLayer, find_float32, match_attention, match_linears, parse_plan  # noqa: E402

TOKENS, WIDTH = 64, 64
SM86 = BuildOptions(compute_capabilities=("sm86",))
SITE = {"site": ("qk", "softmax", "pv")}


def model(dtype: type = np.float16, *, batch: int | str = 2, softmax: str = "Softmax") -> Any:
    """One attention head and one linear after it. (TensorRT-RTX does not fuse a single head at batch 1.)"""
    of_dtype = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(dtype), name)
        for name in ("wq", "wk", "wv", "wo")
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast_in", to=of_dtype),
        *(helper.make_node("MatMul", ["h", f"w{role}"], [role], name=f"{role}_proj") for role in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], name="kt", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="qk"),
        helper.make_node(softmax, ["scores"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["o"], name="pv"),
        helper.make_node("MatMul", ["o", "wo"], ["out"], name="out_proj"),
        helper.make_node("Cast", ["out"], ["y"], name="cast_out", to=TensorProto.FLOAT),
    ]
    shape = [batch, TOKENS, WIDTH]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(folder: Path, **options: Any) -> Path:
    path = folder / "model.onnx"
    onnx.save(model(**options), path)
    return path


def layers(engine: BuiltEngine) -> list[PlanLayer]:
    return parse_plan(engine.layer_plan.split("\n"))


def test_builds_and_prints_its_layers(tmp_path: Path) -> None:
    heard: list[str] = []
    engine = build_engine(trt, saved(tmp_path), SM86, on_line=heard.append)

    assert engine.plan
    assert match_attention(layers(engine), SITE).unfused == {}
    assert match_linears(layers(engine), {"out": ("out_proj",)}) == {"out": "fp16"}
    assert "phase: Building engine" in heard
    assert str(tmp_path) not in engine.layer_plan


def test_two_builds_give_the_same_layer_plan(tmp_path: Path) -> None:
    """Except for numbers in names that TensorRT's compiler invents: they go on from build to build."""
    path = saved(tmp_path)
    first, second = (re.sub(r"__mye\d+", "", build_engine(trt, path, SM86).layer_plan) for _ in range(2))
    assert first == second
    assert len(first.split("\n")) > 3


def test_fp32_is_not_fused(tmp_path: Path) -> None:
    engine = build_engine(trt, saved(tmp_path, dtype=np.float32), SM86)
    assert match_attention(layers(engine), SITE).unfused.keys() == {"site"}
    assert find_float32(layers(engine), SITE) == {"site"}
    assert match_linears(layers(engine), {"out": ("out_proj",)}) == {"out": "fp32"}


def test_external_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert build_engine(trt, path, SM86).plan

    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CompileError):
        build_engine(trt, path, SM86)


def test_dynamic_batch(tmp_path: Path) -> None:
    path = saved(tmp_path, batch="n")
    with pytest.raises(CompileError, match=r"Input x has the shape \[-1, 64, 64\].*no shape profile"):
        build_engine(trt, path, SM86)

    shapes = tuple((batch, TOKENS, WIDTH) for batch in (1, 4, 8))
    engine = build_engine(trt, path, replace(SM86, profile={"x": (shapes[0], shapes[1], shapes[2])}))
    assert match_attention(layers(engine), SITE).unfused == {}

    with pytest.raises(CompileError, match="MIN <= OPT <= MAX"):
        build_engine(trt, path, replace(SM86, profile={"x": (shapes[1], shapes[0], shapes[2])}))
    with pytest.raises(CompileError, match="names z, which is not an input"):
        build_engine(trt, path, replace(SM86, profile={"z": (shapes[0], shapes[0], shapes[0])}))


def test_errors_say_what_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"node 'softmax' \(Frobnicate\) of model\.onnx"):
        build_engine(trt, saved(tmp_path, softmax="Frobnicate"), SM86)
    with pytest.raises(CompileError, match=r"does not compile for sm13.*It compiles for sm75"):
        build_engine(trt, saved(tmp_path), BuildOptions(compute_capabilities=("sm13",)))
    with pytest.raises(CompileError, match=r"cannot read gone\.onnx"):
        build_engine(trt, tmp_path / "gone.onnx", SM86)
    with pytest.raises(CompileError, match="Raise the workspace"):
        build_engine(trt, saved(tmp_path), BuildOptions(compute_capabilities=("sm86",), workspace_bytes=1))


def test_compute_capabilities_are_the_api_s_own() -> None:
    names = Api(trt).compute_capabilities
    assert "sm86" in names
    assert all(re.fullmatch(r"sm\d+", name) for name in names)
    assert Api(pytest).compute_capabilities == ()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_stops_the_build_and_gets_through(tmp_path: Path, error: type[BaseException]) -> None:
    heard: list[str] = []

    def listener(line: str) -> None:
        heard.append(line)
        if line == "phase: Building engine":
            raise error

    with pytest.raises(error):
        build_engine(trt, saved(tmp_path), SM86, on_line=listener)
    assert heard[-1] == "phase: Building engine"


DEADLOCK = """
import gc, sys, pathlib, tensorrt_rtx as trt
from vitdeploy.errors import CompileError
from vitdeploy.targets._tensorrt.build import BuildOptions, build_engine
from vitdeploy.targets._tensorrt.log import BuildLog

path = pathlib.Path(sys.argv[1])
gc.disable()
try:
    build_engine(trt, path, BuildOptions(compute_capabilities=("sm86",), workspace_bytes=1))
except CompileError as error:
    error.itself = error  # only the collector can free it, with its traceback and what that holds
add = BuildLog.add
BuildLog.add = lambda log, *message: (gc.collect(), add(log, *message))  # runs inside TensorRT, its lock held
build_engine(trt, path, BuildOptions(compute_capabilities=("sm86",)))
"""


def test_a_failed_build_does_not_block_the_next(tmp_path: Path) -> None:
    """In another process: a deadlock inside the collector holds the interpreter lock, so no timeout would work."""
    subprocess.run([sys.executable, "-c", DEADLOCK, saved(tmp_path)], check=True, timeout=300)
