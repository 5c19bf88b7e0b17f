"""Linears on one value each read a value of their own, and no number changes."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, parsed, run, tiny_vit
from tests.toys.lowered import lower
from vitdeploy.graph.model import Graph
from vitdeploy.graph.products import weight_of
from vitdeploy.passes.separate_qkv import SeparateQkv, lowest
from vitdeploy.quantize.half import convert


def shared(graph: Graph) -> int:
    """The number of linears that read a value that another one reads too."""
    readers = Counter(node.inputs[0] for node in graph.nodes if node.op_type == "MatMul" and weight_of(node))
    return sum(count for count in readers.values() if count > 1)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_q_k_and_v_read_three_values(kind: str) -> None:
    x = images()
    graph, _ = lower(tiny_vit(), x, kind)
    assert shared(graph) == 5  # 2 blocks; the last one computes the query of the class token alone
    before = run(graph, x)["output_0"]
    assert apply(SeparateQkv(), graph).fired == 3
    assert shared(graph) == 0
    after = run(graph, x)["output_0"]
    assert np.abs(after - before).max() <= (1e-6 if kind == "fp32" else 5e-3) * np.abs(before).max()
    assert apply(SeparateQkv(), graph).fired == 0


def test_each_linear_of_a_group_has_a_bound_of_its_own() -> None:
    graph, _ = lower(tiny_vit(), images())
    apply(SeparateQkv(), graph)
    bounds = {node.name: node.inputs[1].const_value.numpy() for node in graph.nodes if node.op_type == "Max"}  # type: ignore[union-attr]
    assert {float(bound) for bound in bounds.values()} == {-65504.0, -65472.0}
    assert all(bound.dtype == np.float16 for bound in bounds.values())


def test_in_a_quantized_graph_each_linear_has_a_pair_of_its_own() -> None:
    graph, _ = lower(tiny_vit(), images(), "int8")
    apply(SeparateQkv(), graph)
    for node in [node for node in graph.nodes if node.op_type == "Max"]:
        (use,) = node.outputs[0].uses()
        (pair,) = use.node.outputs[0].uses()
        (product,) = pair.node.outputs[0].uses()
        assert [use.node.op_type, pair.node.op_type, product.node.op_type] == [
            "QuantizeLinear", "DequantizeLinear", "MatMul",
        ]  # fmt: skip


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT])
def test_bounds_are_the_lowest_finite_numbers(dtype: ir.DataType) -> None:
    first, second = lowest(dtype, 0), lowest(dtype, 1)
    assert float(first) == float(ml_dtypes.finfo(first.dtype).min)
    assert np.isfinite(float(second)) and float(second) > float(first)
    assert float(second) == pytest.approx(float(first), rel=1e-2)


def test_one_linear_on_each_value_is_left_alone() -> None:
    weight = np.ones((4, 4), np.float32)
    graph = parsed(
        '<ir_version: 11, opset_import: ["" : 20]> g (float[1,4] x) => (float y) { a = MatMul(x, w) y = MatMul(a, w) }',
        w=weight,
    )
    convert(graph)
    assert apply(SeparateQkv(), graph).fired == 0
