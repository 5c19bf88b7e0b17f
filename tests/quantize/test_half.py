"""FP16 inside, FP32 at the edges and where float16 would overflow, checked in true half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, expected, images, parsed, raised, run, types
from vitdeploy.errors import QuantizeError
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.quantize import half

ADD = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float y) { y = Add(x, w) }'


@pytest.mark.parametrize("kind", ["dynamo", "legacy-17", "dynamo-batch"])
def test_the_vit_in_half_precision(kind: str, vit: Any, exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported(kind))
    before = graph.weight_bytes()
    half.convert(graph)
    apply(LowerPrimitives(), graph)
    inside = [v.dtype for node in graph.nodes if node.op_type != "Cast" for v in node.outputs]
    assert ir.DataType.FLOAT not in inside
    assert {v.dtype for v in graph.model.graph.initializers.values()} <= {ir.DataType.FLOAT16, ir.DataType.INT64}
    assert graph.weight_bytes() < 0.55 * before
    assert [v.dtype for v in (*graph.model.graph.inputs, *graph.model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    x = images(3 if kind.endswith("batch") else 1)
    y = run(graph, x)["output_0"]
    assert y.dtype == np.float32
    assert 0 < np.abs(y - expected(vit, x)["output_0"]).max() < 0.01


def test_a_weight_beyond_its_range_is_refused_by_name_unless_its_node_stays() -> None:
    with pytest.raises(QuantizeError, match=r"w reaches 7e\+04, float16 ends at 65504"):
        half.convert(parsed(ADD, w=np.array([1, -7e4], np.float32)))
    graph = parsed(ADD, w=np.array([1, -7e4], np.float32))
    half.convert(graph, {"Add.0"})
    assert run(graph, np.array([1, 2], np.float32))["y"].tolist() == [2, -69998]


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("e = EyeLike<dtype = 1>(m) y = Add(m, e)", ["Cast", "EyeLike", "Add", "Cast"]),
        (
            "f = ReduceMax<keepdims = 0>(m) r = Range(zero, f, one) y = Add(m, r)",
            ["Cast", "ReduceMax", "Cast", "Range", "Cast", "Add", "Cast"],
        ),
    ],
)
def test_operators_that_declare_or_lack_the_type(body: str, operators: list[str]) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[2,2] m) => (float y) {{ {body} }}'
    constants = {"zero": np.float32(0), "one": np.float32(1)} if "zero" in body else {}
    graph = parsed(text, **{name: np.array(value) for name, value in constants.items()})
    graph.infer_shapes()
    x = np.array([[0, 1], [1, 2]], np.float32)
    reference = run(graph, x)["y"]
    half.convert(graph)
    assert types(graph) == operators
    assert np.array_equal(run(graph, x)["y"], reference)


def test_casts_stand_at_the_borders_only_and_once() -> None:
    graph = parsed(
        ADD.replace("y = Add(x, w)", "a = Add(x, w) b = Mul(a, w) c = Mul(a, b) d = Neg(b) e = Add(c, d) y = Relu(e)"),
        w=np.array([1, 2], np.float32),
    )
    half.convert(graph, {"Mul.1", "Mul.2"})
    assert types(graph) == ["Cast", "Add", "Cast", "Mul", "Cast", "Mul", "Cast", "Neg", "Add", "Relu", "Cast"]
    assert {n: v.dtype for n, v in graph.model.graph.initializers.items()} == {
        "w": ir.DataType.FLOAT16, "w/float32": ir.DataType.FLOAT,
    }  # fmt: skip
    assert run(graph, np.array([1, 2], np.float32))["y"].tolist() == [2, 24]


def test_an_output_that_a_float32_node_reads_too_has_its_own_cast() -> None:
    graph = parsed(
        ADD.replace("(float y)", "(float y, float z)").replace("y = Add(x, w)", "y = Add(x, w) z = Mul(y, y)"),
        w=np.array([1, 2], np.float32),
    )
    half.convert(graph, {"Mul.1"})
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    outputs = run(graph, np.array([1, 2], np.float32))
    assert {name: value.tolist() for name, value in outputs.items()} == {"y": [2, 4], "z": [4, 16]}


def test_values_that_share_a_type_object_are_converted_apart() -> None:
    """Rewrites hand the old value's type to the new one."""
    graph = parsed(ADD.replace("y = Add(x, w)", "a = Add(x, w) b = Neg(a) y = Relu(b)"), w=np.ones(2, np.float32))
    first, second, _ = (node.outputs[0] for node in graph.nodes)
    second.type = first.type
    half.convert(graph, {"Add.0"})
    assert (first.dtype, second.dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def test_a_constant_inside_a_node_is_converted_and_checked() -> None:
    constant = "w = Constant<value = float[1] {V}>() y = Add(x, w)"
    inside = ADD.replace("float[2]", "float[1]").replace("y = Add(x, w)", constant)
    graph = parsed(inside.replace("V", "2.5"))
    half.convert(graph)
    assert run(graph, np.ones(1, np.float32))["y"] == [3.5]
    with pytest.raises(QuantizeError, match="float16 ends"):
        half.convert(parsed(inside.replace("V", "1e6")))


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min, -9e15, -1e9])
def test_a_mask_keeps_masking(masked: float) -> None:
    graph = parsed(ADD.replace("y = Add(x, w)", "a = Add(x, w) y = Softmax(a)"), w=np.array([0, masked], np.float32))
    half.convert(graph)
    assert run(graph, np.array([1, 2], np.float32))["y"].tolist() == [1, 0]


def test_what_an_operator_defines_as_float32_stays() -> None:
    resize = ADD.replace("float[2]", "float[1,1,2,2]").replace("Add(x, w)", 'Resize<mode = "linear">(x, , s)')
    graph = parsed(resize, s=np.array([1, 1, 2, 2], np.float32))
    half.convert(graph)
    assert types(graph) == ["Cast", "Resize", "Cast"]
    assert run(graph, np.ones((1, 1, 2, 2), np.float32))["y"].shape == (1, 1, 4, 4)


def test_a_cast_to_float_inside_becomes_a_cast_to_half() -> None:
    graph = parsed(
        ADD.replace("float[2] x", "int64[2] x")
        .replace("Add(x, w)", "Add(f, w)")
        .replace("{ y", "{ f = Cast<to = 1>(x) y"),
        w=np.ones(2, np.float32),
    )
    half.convert(graph)
    y = run(graph, np.array([1, 2]))["y"]
    assert (y.dtype, y.tolist()) == (np.float32, [2, 3])


@pytest.mark.parametrize("to", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_norms_that_cannot_say_it_take_their_variance_in_float32(to: ir.DataType) -> None:
    graph = parsed(
        """<ir_version: 9, opset_import: ["" : 20]> vit (float[1,2,4] x) => (float y) {
            i = InstanceNormalization(x, g, g) m = MeanVarianceNormalization<axes = [2]>(i) y = Relu(m)
        }""",
        g=np.ones(2, np.float32),
    )
    graph.infer_shapes()
    reasons = half.find_statistics(graph)
    why = "its variance is computed in the type of its input"
    assert reasons == {"InstanceNormalization.0": why, "MeanVarianceNormalization.1": why}
    half.convert(graph, reasons, to)
    kinds = {node.op_type: node.outputs[0].dtype for node in graph.nodes if node.op_type != "Cast"}
    float32 = ir.DataType.FLOAT
    assert kinds == {"InstanceNormalization": float32, "MeanVarianceNormalization": float32, "Relu": to}
