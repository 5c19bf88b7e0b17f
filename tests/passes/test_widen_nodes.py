"""Nodes of a half-precision graph compute in float32 with the weights that are stored."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, parsed, run, tiny_vit
from tests.toys.lowered import lower
from vitdeploy.graph.blocks import find_blocks
from vitdeploy.graph.model import Graph, constant
from vitdeploy.passes.widen_nodes import WidenNodes

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
PAIRS = ("DequantizeLinear", "QuantizeLinear")


def types(graph: Graph) -> dict[str, ir.DataType | None]:
    return {node.name or "": node.outputs[0].dtype for node in graph.nodes if node.op_type not in ("Cast", *PAIRS)}


def large_weights(graph: Graph) -> set[bytes]:
    tensors = (constant(value) for value in graph.model.graph.initializers.values())
    return {tensor.numpy().tobytes() for tensor in tensors if tensor is not None and tensor.nbytes >= 1024}


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_everything_computes_in_float32(kind: str) -> None:
    x = images()
    graph, _ = lower(tiny_vit(), x, kind)
    before, weights = run(graph, x)["output_0"], large_weights(graph)
    pairs = sum(node.op_type in PAIRS for node in graph.nodes)
    assert apply(WidenNodes(), graph).fired > 50
    assert HALF not in types(graph).values()
    assert large_weights(graph) == weights
    assert sum(node.op_type in PAIRS for node in graph.nodes) == pairs
    after = run(graph, x)["output_0"]
    assert np.abs(after - before).max() <= 2e-2 * np.abs(before).max()
    assert apply(WidenNodes(), graph).fired == 0


def test_only_the_block_computes_in_float32() -> None:
    x = images()
    graph, structure = lower(tiny_vit(), x)
    before, half = run(graph, x)["output_0"], types(graph)
    block = find_blocks(graph, structure)[1]
    assert apply(WidenNodes(only=block.nodes), graph).fired == len(block.nodes)
    after = types(graph)
    assert {name for name in after if after[name] != half[name]} == block.nodes
    result = run(graph, x)["output_0"]
    assert np.abs(result - before).max() <= 1e-2 * np.abs(before).max()


def test_the_borders_are_two_casts() -> None:
    graph, structure = lower(tiny_vit(), images())
    values = {node.name: node for node in graph.nodes}
    block = find_blocks(graph, structure)[0]
    casts = sum(node.op_type == "Cast" for node in graph.nodes)
    apply(WidenNodes(only=block.nodes), graph)
    added = [node for node in graph.nodes if node.op_type == "Cast" and node.name not in values]
    activations = [node for node in added if constant(node.inputs[0]) is None]
    assert sorted((node.name or "").rpartition("/")[2] for node in activations) == ["to_float", "to_half"]
    assert casts == sum(node.op_type == "Cast" for node in graph.nodes) - len(added)


def test_float32_is_left_alone() -> None:
    graph, _ = lower(tiny_vit(), images(), "fp32")
    assert apply(WidenNodes(), graph).fired == 0


def test_a_value_that_is_cast_already_is_cast_beside_it() -> None:
    """Where float16 overflows, a graph has casts already before a block of it is widened."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float16[2] x) => (float y, float z)
        <float16[2] "x/float"> {
            "x/float" = Neg(x) f = Cast <to = 1> (x) y = Relu(f)
            a = Mul(x, x) b = Add(a, "x/float") z = Cast <to = 1> (b) }"""
    graph = parsed(text)
    WidenNodes(only=frozenset({"Mul.3"})).apply(graph)
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)
