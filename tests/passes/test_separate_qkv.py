"""Linears on one value each read a value of their own, and no number changes."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, parsed, run, tiny_vit
from tests.toys.lowered import eva, lower
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


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_one_linear_for_rotated_queries_and_keys_is_multiplied_in_three_parts(kind: str) -> None:
    x = images()
    graph, _ = lower(eva(qkv_fused=True, swiglu_mlp=False), x, kind)
    before, weights = run(graph, x)["output_0"], dict(graph.model.graph.initializers)
    assert apply(SeparateQkv(), graph).fired == 4
    parts = [node for node in graph.nodes if "/part" in (node.name or "") and node.op_type == "MatMul"]
    assert len(parts) == len({node.inputs[0] for node in parts}) == 6  # 2 blocks
    assert all(node.inputs[1].producer().op_type == "Slice" for node in parts)  # type: ignore[union-attr]
    assert {name for name in weights if name not in graph.model.graph.initializers} == set()
    after = run(graph, x)["output_0"]
    assert np.abs(after - before).max() <= (1e-6 if kind == "fp32" else 5e-3) * np.abs(before).max()


def test_each_part_gives_the_numbers_of_q_k_or_v() -> None:
    """Parts are thirds of the channels, in order: the numbers of each are those of the whole linear."""
    x = images()
    graph, structure = lower(eva(qkv_fused=True), x, "fp32")
    (packed, *_) = [linear for linear in structure.linears if linear.role == "qkv"]
    whole = next(node for node in graph.nodes if node.name == packed.nodes[0]).outputs[0]
    graph.model.graph.outputs.append(whole)
    before = run(graph, x)[str(whole.name)]
    graph.model.graph.outputs.pop()
    apply(SeparateQkv(), graph)
    names = [node.name or "" for node in graph.nodes]
    (located, *_) = [linear for linear in structure.locate_parts(names).linears if linear.name == packed.name]
    assert len(located.nodes) == 3
    parts = [node.outputs[0] for name in located.nodes for node in graph.nodes if node.name == name]
    graph.model.graph.outputs.extend(parts)
    after = run(graph, x)
    joined = np.concatenate([after[str(part.name)] for part in parts], -1)
    assert np.abs(joined - before).max() <= 1e-6 * np.abs(before).max()


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
