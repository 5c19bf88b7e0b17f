"""Half precision in a graph becomes float32, wherever it is."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import parsed, run, types
from vitdeploy.graph.model import load
from vitdeploy.graph.widening import widen_floats

HALF, FLOAT, BOOL = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL
X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def tensor(name: str, numbers: object, dtype: object = np.float16) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(numbers, dtype), name)


def branch(name: str, factor: float) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Constant", [], [f"{name}_factor"], value=tensor("", factor)),
        helper.make_node("Mul", ["h", f"{name}_factor"], [name]),
    ]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, HALF, None)])


def everything(kind: int = HALF) -> onnx.ModelProto:
    """Half precision in the input, the output, a weight, a constant, casts, a fill, a branch and a function."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("Cast", ["f"], ["h"], to=HALF),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch("two", 2.0), else_branch=branch("three", 3.0)),
        helper.make_node("Constant", [], ["mask"], value=tensor("", [0, 0, 0, -65504])),
        helper.make_node("ConstantOfShape", ["shape"], ["fill"], value=tensor("", [0.1])),
        helper.make_node("Add", ["b", "w"], ["a"]),
        helper.make_node("Add", ["a", "fill"], ["c"]),
        helper.make_node("Halve", ["c"], ["d"], domain="own"),
        helper.make_node("Where", ["keep", "d", "mask"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", kind, [2, 4])],
        [helper.make_tensor_value_info("y", kind, [2, 4])],
        [tensor("w", [0.1, 0.2, 0.3, 0.4]), tensor("yes", True, np.bool_), tensor("shape", [4], np.int64),
         tensor("keep", [True, True, True, False], np.bool_)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    body = [
        helper.make_node("Constant", [], ["half"], value=tensor("", 0.5)),
        helper.make_node("Cast", ["v"], ["u"], to=HALF),
        helper.make_node("Mul", ["u", "half"], ["r"]),
    ]
    model.functions.append(helper.make_function("own", "Halve", ["v"], ["r"], body, [helper.make_opsetid("", 18)]))
    return model


def test_every_half_becomes_a_float() -> None:
    model = everything()
    graph = parsed(model.SerializeToString())
    assert widen_floats(graph.model) == ir.DataType.FLOAT16
    text = str(ir.to_proto(graph.model))
    assert "data_type: 10" not in text
    assert "elem_type: 10" not in text
    assert "Cast" not in types(graph)
    weight = np.asarray([0.1, 0.2, 0.3, 0.4], np.float16).astype(np.float32)
    expected = (2 * X + weight + np.float32(np.float16(0.1))) / 2
    expected[:, 3] = -65504
    given = run(graph, X)["y"]
    assert given.dtype == np.float32
    assert np.abs(given - expected).max() < 1e-6
    assert widen_floats(graph.model) is None


def test_bfloat16_too() -> None:
    body = '<ir_version: 9, opset_import: ["" : 18]> g (bfloat16[2,4] x) => (bfloat16 y) { y = Add(x, w) }'
    weight = np.asarray([0.1, 0.2, 0.3, 0.4], ml_dtypes.bfloat16)
    graph = parsed(body, w=weight)
    assert widen_floats(graph.model) == ir.DataType.BFLOAT16
    assert np.array_equal(run(graph, X)["y"], X + weight.astype(np.float32))


def test_float32_is_left_alone() -> None:
    graph = parsed('<ir_version: 9, opset_import: ["" : 18]> g (float[2,4] x) => (float y) { y = Add(x, w) }', w=X[0])
    before = ir.to_proto(graph.model).SerializeToString()
    assert widen_floats(graph.model) is None
    assert ir.to_proto(graph.model).SerializeToString() == before


@pytest.mark.parametrize("constant", [math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715])
def test_the_constants_of_gelu_become_exact(constant: float) -> None:
    body = '<ir_version: 9, opset_import: ["" : 18]> g (float16[2,4] x) => (float16 y) { y = Mul(x, c) }'
    graph = parsed(body, c=np.float16(constant))
    widen_floats(graph.model)
    assert np.array_equal(run(graph, X)["y"], X * np.float32(constant))
    other = np.nextafter(np.float16(constant), np.float16(2))
    graph = parsed(body, c=other)
    widen_floats(graph.model)
    assert np.array_equal(run(graph, X)["y"], X * np.float32(other))


def test_weights_in_a_data_file(tmp_path: Path) -> None:
    onnx.save(everything(), tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert (tmp_path / "w.data").is_file()
    graph = load(tmp_path / "m.onnx")
    assert widen_floats(graph.model) == ir.DataType.FLOAT16
    graph.save(tmp_path / "wide.onnx")
    (tmp_path / "w.data").unlink()
    plain = parsed(everything().SerializeToString())
    widen_floats(plain.model)
    assert np.array_equal(run(load(tmp_path / "wide.onnx"), X)["y"], run(plain, X)["y"])
