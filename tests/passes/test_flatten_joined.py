"""OpenVINO refuses a product behind joined tokens in INT8, unless they are quantized as a matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.flatten_joined import FlattenJoined

REFUSAL = "cannot be broadcasted"
BETWEEN = {"": "c", "Relu": "Relu(c)", "Add": "Add(c, least)"}
ONCE = [((1, 1, 8), (1, 8, 8), 1), ((1, 4, 3, 8), (1, 4, 2, 8), 2), ((1, 2, 3, 8), (1, 4, 3, 8), 1)]


def joining(one: tuple[int, ...], two: tuple[int, ...], axis: int, between: str = "", batch: str = "") -> Graph:
    """Two tensors, joined, quantized and multiplied with an INT8 weight."""
    sizes = [", ".join([batch or str(shape[0]), *map(str, shape[1:])]) for shape in (one, two)]
    channels = one[-1] + two[-1] if axis == len(one) - 1 else one[-1]
    rng = np.random.default_rng(0)
    return parsed(
        f'<ir_version: 9, opset_import: ["" : 19]> vit (float[{sizes[0]}] a, float[{sizes[1]}] b) => (float y) {{'
        f" ra = Relu(a) rb = Sigmoid(b) c = Concat<axis = {axis}>(ra, rb)"
        f" v = {BETWEEN[between] if between else 'Identity(c)'}"
        " q = QuantizeLinear(v, scale, zero) d = DequantizeLinear(q, scale, zero)"
        " w = DequantizeLinear<axis = 1>(codes, scales, zeros) m = MatMul(d, w) y = Relu(m) }",
        least=np.float32(0.1), scale=np.float32(0.02), zero=np.uint8(100),
        codes=rng.integers(-127, 127, (channels, 16)).astype(np.int8),
        scales=np.full(16, 0.01, np.float32), zeros=np.zeros(16, np.int8),
    )  # fmt: skip


def compiled(graph: Graph, folder: Path) -> str:
    """The type in which OpenVINO multiplies, or its refusal."""
    openvino = pytest.importorskip("openvino")
    graph.save(folder / "model.onnx")
    core = openvino.Core()
    try:
        model = core.compile_model(core.read_model(folder / "model.onnx"), "CPU")
    except RuntimeError as error:
        return str(error)
    infos = [operator.get_rt_info() for operator in model.get_runtime_model().get_ordered_ops()]
    [product] = [info for info in infos if info["layerType"].astype(str) in ("FullyConnected", "MatMul")]
    return str(product["runtimePrecision"].astype(str))


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize(("one", "two", "axis"), ONCE)
def test_openvino_takes_it_only_as_a_matrix(
    one: tuple[int, ...], two: tuple[int, ...], axis: int, between: str, tmp_path: Path
) -> None:
    graph = joining(one, two, axis, between)
    a, b = (np.random.default_rng(1).standard_normal(shape).astype(np.float32) for shape in (one, two))
    expected = run(graph, a, b=b)["y"]
    plain = compiled(graph, tmp_path)
    assert REFUSAL in plain or not plain.startswith("u8"), "it compiles as it is: the pass is no longer needed"
    assert apply(FlattenJoined(), graph).fired == 1
    assert compiled(graph, tmp_path) == "u8"
    assert np.array_equal(run(graph, a, b=b)["y"], expected)


def test_a_batch_that_varies_is_kept() -> None:
    graph = joining((2, 1, 8), (2, 8, 8), 1, batch="batch")
    a, b = np.ones((2, 1, 8), np.float32), np.ones((2, 8, 8), np.float32)
    expected = run(graph, a, b=b)["y"]
    assert apply(FlattenJoined(), graph).fired == 1
    assert np.array_equal(run(graph, a, b=b)["y"], expected)
    assert [*types(graph)].count("Reshape") == 2


def test_joined_channels_stay(tmp_path: Path) -> None:
    graph = joining((1, 9, 8), (1, 9, 8), 2)
    assert apply(FlattenJoined(), graph).fired == 0
    assert compiled(graph, tmp_path) == "u8"


@pytest.mark.parametrize(("axis", "fired"), [(1, 0), (2, 1), (-2, 1)])
@pytest.mark.parametrize("side", [1, 3])
def test_a_convolution_of_joined_maps_is_int8(axis: int, fired: int, side: int, tmp_path: Path) -> None:
    """Joined channels stay as they are: with the Reshape, OpenVINO reordered SegFormer's largest map twice."""
    openvino = pytest.importorskip("openvino")
    rng = np.random.default_rng(0)
    channels = 16 if axis == 1 else 8
    graph = parsed(
        '<ir_version: 9, opset_import: ["" : 19]> vit (float[1, 8, 6, 5] a, float[1, 8, 6, 5] b) => (float y) {'
        f" ra = Relu(a) rb = Sigmoid(b) c = Concat<axis = {axis}>(ra, rb)"
        " q = QuantizeLinear(c, scale, zero) d = DequantizeLinear(q, scale, zero)"
        " w = DequantizeLinear<axis = 0>(codes, scales, zeros) m = Conv(d, w) y = Relu(m) }",
        scale=np.float32(0.02), zero=np.uint8(100),
        codes=rng.integers(-127, 127, (32, channels, side, side)).astype(np.int8),
        scales=np.full(32, 0.01, np.float32), zeros=np.zeros(32, np.int8),
    )  # fmt: skip
    a, b = (rng.standard_normal((1, 8, 6, 5)).astype(np.float32) for _ in range(2))
    expected = run(graph, a, b=b)["y"]
    assert apply(FlattenJoined(), graph).fired == fired
    graph.save(tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ordered_ops()]
    [product] = [info for info in infos if info["layerType"].astype(str) == "Convolution"]
    assert str(product["runtimePrecision"].astype(str)) == "u8"
    assert np.abs(compiled([a, b])[0] - expected).max() < 0.02 * np.abs(expected).max()
