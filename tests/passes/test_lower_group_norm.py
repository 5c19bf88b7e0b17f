"""GroupNormalization becomes InstanceNormalization of each group, with the same numbers at an opset that all read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.graphs import apply, dynamo, expected, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.fold_constants import FoldConstants
from vitdeploy.passes.lower_group_norm import LowerGroupNorm
from vitdeploy.quantize.half import convert

LOWERED = ["Reshape", "InstanceNormalization", "Reshape"]
SHAPES = [(2, 8), (2, 8, 5), (2, 8, 3, 4), (2, 8, 2, 3, 4)]


WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)


def drawn(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 3


def norm(groups: int, shape: tuple[int, ...]) -> Graph:
    """A group norm over 8 channels, as the dynamo exporter writes it."""
    axes = ", ".join(["N", *map(str, shape[1:])])
    text = f"""<ir_version: 11, opset_import: ["" : 23]> vit (float[{axes}] x) => (float y) {{
        y = GroupNormalization<num_groups = {groups}>(x, weight, bias)
    }}"""
    return parsed(text, weight=WEIGHT, bias=BIAS)


def in_pytorch(groups: int, x: Any) -> Any:
    return nn.functional.group_norm(torch.from_numpy(x), groups, torch.from_numpy(WEIGHT), torch.from_numpy(BIAS))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"rank {len(shape)}")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_numbers_are_pytorchs(shape: tuple[int, ...], groups: int) -> None:
    x, graph = drawn(*shape), norm(groups, shape)
    result = apply(LowerGroupNorm(), graph)
    assert (result.fired, result.refused) == (1, {})
    assert types(graph) == [*LOWERED, "Mul", "Add"]
    assert apply(DeclareOpset(opset=20), graph).refused == {}
    assert graph.opset == 20
    assert np.abs(run(graph, x)["y"] - in_pytorch(groups, x).numpy()).max() < 1e-5


def test_a_norm_without_an_affine_part_has_no_node_for_it() -> None:
    module, x = nn.GroupNorm(4, 8, affine=False).eval(), drawn(1, 8, 6, 6)
    graph = parsed(dynamo(module, x))
    apply(FoldConstants(), graph)
    assert apply(LowerGroupNorm(), graph).fired == 1
    assert types(graph) == LOWERED
    assert np.abs(run(graph, x)["output_0"] - expected(module, x)["output_0"]).max() < 1e-5


TEXT = """<ir_version: 10, opset_import: ["" : 23]> vit (float[N, 4, H, W] x, float[4] g) => (float y) {
    y = GroupNormalization<num_groups = 2, epsilon = 0.5>(x, g, g)
}"""


def varying() -> Graph:
    graph = parsed(TEXT)
    graph.model.graph.outputs[0].shape = ir.Shape(["N", 4, "H", "W"])  # inference finds nothing for a computed scale
    return graph


def test_sizes_that_vary_are_read_from_the_input_and_a_computed_scale_is_reshaped() -> None:
    graph, g = varying(), drawn(4)
    assert apply(LowerGroupNorm(), graph).fired == 1
    assert types(graph) == [*LOWERED[:2], "Shape", "Reshape", "Unsqueeze", "Mul", "Unsqueeze", "Add"]
    for shape in ((1, 4, 3, 5), (2, 4, 2, 2)):
        x = drawn(*shape)
        assert np.abs(run(graph, x, g=g)["y"] - run(varying(), x, g=g)["y"]).max() < 1e-5


@pytest.mark.parametrize("to", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_low_precisions_take_the_variance_in_float32(to: ir.DataType) -> None:
    """Values around 300 have squares beyond float16's 65,504, and bfloat16 has 8 bits to hold their mean in."""
    x = 300 + drawn(2, 8, 4, 4) * 8
    graph = norm(2, x.shape)
    graph.infer_shapes()
    convert(graph, to=to)
    assert apply(LowerGroupNorm(), graph).fired == 1
    assert types(graph)[1:-1] == ["Cast", *LOWERED, "Cast", "Mul", "Add"]  # the first and the last are the graph's own
    graph.infer_shapes()
    instance = next(node for node in graph.nodes if node.op_type == "InstanceNormalization")
    assert [value.dtype for value in instance.inputs] == [ir.DataType.FLOAT] * 3
    if to == ir.DataType.FLOAT16:  # ONNX Runtime has no bfloat16 on CPUs
        rounded = x.astype(np.float16).astype(np.float32)
        assert np.abs(run(graph, x)["y"] - in_pytorch(2, rounded).numpy()).max() < 1e-2


def test_refuses_what_it_does_not_know() -> None:
    graph = parsed(TEXT)
    graph.model.graph.inputs[0].shape = None
    assert LowerGroupNorm().apply(graph).refused == {"GroupNormalization.0": "the rank of its input is not known"}
    older = parsed(TEXT.replace("23", "20"))
    reason = "at opset 20 it has a scale for each group, not for each channel"
    assert LowerGroupNorm().apply(older).refused == {"GroupNormalization.0": reason}
    assert types(older) == ["GroupNormalization"]


def test_a_value_with_a_shape_has_a_type() -> None:
    """Else onnx_ir prints a line for each when the graph is saved."""
    text = """<ir_version: 11, opset_import: ["" : 23]> vit (float[2,8,3,4] x) => (float[2,8,3,4] y) {
        n = GroupNormalization<num_groups = 2>(x, weight, bias) y = Relu(n)
    }"""
    graph = parsed(text, weight=WEIGHT[0], bias=BIAS[0])
    normed = next(node.outputs[0] for node in graph.nodes if node.op_type == "GroupNormalization")
    normed.shape, normed.type = ir.Shape([2, 8, 3, 4]), None  # as inference leaves it where the batch varies
    assert LowerGroupNorm().apply(graph).fired == 1
    values = [value for node in graph.nodes for value in node.outputs if value.shape is not None]
    assert values
    assert all(value.type is not None for value in values)
