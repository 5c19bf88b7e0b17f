"""Scores and softmax compute in float32, and everything else as before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, run, tiny_vit
from tests.toys.lowered import lower, swin
from vitdeploy.graph.model import Graph
from vitdeploy.passes.widen_scores import WidenScores

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def core_types(graph: Graph, name: str) -> set[ir.DataType | None]:
    """The types that the nodes called `…/Attention/NAME` give."""
    return {node.outputs[0].dtype for node in graph.nodes if (node.name or "").endswith(f"/Attention/{name}")}


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_scores_and_softmax_are_float32(kind: str) -> None:
    x = images()
    graph, _ = lower(tiny_vit(), x, kind)
    before = run(graph, x)["output_0"]
    assert core_types(graph, "qk") == core_types(graph, "softmax") == {HALF}
    assert apply(WidenScores(), graph).fired == 2
    assert core_types(graph, "qk") == core_types(graph, "softmax") == {FULL}
    assert core_types(graph, "pv") == {HALF}
    after = run(graph, x)["output_0"]
    assert np.abs(after - before).max() <= 1e-2 * np.abs(before).max()


def test_a_bias_is_added_in_float32() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    graph, _ = lower(swin(), x)
    assert apply(WidenScores(), graph).fired == 4
    assert core_types(graph, "bias") == {FULL}
    tables = {
        node.inputs[1].producer().op_type for node in graph.nodes if (node.name or "").endswith("/Attention/bias")
    }  # type: ignore[union-attr]
    assert tables == {"Cast"}  # the table keeps its bytes


def test_large_scores_do_not_overflow() -> None:
    """What float16 cannot hold is computed: the reason for this form."""
    x = images()
    graph, _ = lower(tiny_vit(), x)
    for node in graph.nodes:
        if node.op_type == "MatMul" and ".q/" in (node.name or ""):
            weight = node.inputs[1]
            assert weight is not None and weight.const_value is not None
            weight.const_value = ir.tensor(weight.const_value.numpy() * np.float16(40000), name=weight.name)
    apply(WidenScores(), graph)
    graph.model.graph.outputs.extend(
        node.outputs[0] for node in graph.nodes if (node.name or "").endswith("/Attention/qk")
    )
    scores = [value for name, value in run(graph, x).items() if name.endswith("/qk:0")]
    assert max(float(np.abs(value).max()) for value in scores) > 65504
    assert all(np.isfinite(value).all() for value in scores)


def test_float32_is_left_alone() -> None:
    graph, _ = lower(tiny_vit(), images(), "fp32")
    assert apply(WidenScores(), graph).fired == 0
