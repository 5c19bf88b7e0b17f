"""Raising to the opset that has `Attention`, folding what is constant, and declaring the target's opset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.graphs import apply, differs, expected, images, parsed, run, types
from vitdeploy.errors import GraphError
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.fold_constants import FoldConstants
from vitdeploy.passes.raise_opset import RaiseOpset
from vitdeploy.passes.remove_dead import RemoveDead

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def model(body: str, opset: int, outputs: str = "float y") -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> vit (float[2,4] x) => ({outputs}) {{ {body} }}'


def test_raises_an_older_graph_with_the_same_numbers() -> None:
    graph = parsed(model("y = ReduceMean<axes = [-1], keepdims = 1>(x)", 13))
    assert apply(RaiseOpset(), graph).fired == 1
    assert graph.opset == 23
    assert "axes" not in next(node for node in graph.nodes if node.op_type == "ReduceMean").attributes
    assert np.abs(run(graph, X)["y"] - X.mean(-1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("opset", "operator"), [(10, "Resize"), (9, "Upsample"), (7, "Upsample")])
def test_an_old_resize_samples_as_before(opset: int, operator: str, mode: str) -> None:
    scales = "<mode = MODE, scales = [1.0, 1.0, 1.7, 1.7]>(image)" if opset < 9 else "<mode = MODE>(image, scales)"
    body = f"image = Unsqueeze<axes = [0, 1]>(x) y = {operator}{scales}".replace("MODE", f'"{mode}"')
    constants = {} if opset < 9 else {"scales": np.array([1, 1, 1.7, 1.7], np.float32)}
    reference = run(parsed(model(body, opset), **constants), X)["y"]
    graph = parsed(model(body, opset), **constants)
    assert RaiseOpset().apply(graph).fired == 1
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-6


@pytest.mark.parametrize("opset", [23, 24])
def test_leaves_a_newer_graph_as_it_is(opset: int) -> None:
    graph = parsed(model("y = Relu(x)", opset))
    assert (apply(RaiseOpset(), graph).fired, graph.opset) == (0, opset)


def test_an_operator_without_a_conversion_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    graph = parsed(model("y = Affine<alpha = 1.0>(x)", 8))
    with pytest.raises(GraphError, match=r"does not convert from opset 8 to 23: .*opset 18 or later"):
        RaiseOpset().apply(graph)
    assert caplog.records == []


@pytest.mark.parametrize("opset", [20, 21, 22])
def test_declares_an_older_opset(opset: int, vit: Any, exported: Callable[[str], bytes]) -> None:
    graph = parsed(exported("legacy-20"))
    RaiseOpset().apply(graph)
    result = apply(DeclareOpset(opset=opset), graph)
    assert (result.fired, result.refused, graph.opset) == (1, {}, opset)
    assert graph.model.ir_version == onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    assert differs(graph, images(), expected(vit, images())) is None


def test_an_operator_that_the_opset_lacks_refuses_it(exported: Callable[[str], bytes]) -> None:
    graph = parsed(exported("dynamo"))
    result = apply(DeclareOpset(opset=20), graph)
    assert (result.fired, graph.opset) == (0, 23)
    assert set(result.refused.values()) == {"Attention does not exist at opset 20"}
    assert len(result.refused) == 2


def test_an_operator_with_another_meaning_refuses_it() -> None:
    """Up to opset 20, GroupNormalization has a scale for each group; from 21 on, one for each channel."""
    scale = np.array([1, 2, 3, 4], np.float32)
    graph = parsed(model("y = GroupNormalization<num_groups = 2>(x, s, s)", 23), s=scale)
    result = apply(DeclareOpset(opset=20), graph)
    assert (result.fired, list(result.refused.values())) == (1, ["GroupNormalization has another meaning at opset 20"])
    assert graph.opset == 21


def test_attributes_that_opset_20_does_not_know_go() -> None:
    body = "q = QuantizeLinear<axis = 1, block_size = 0, saturate = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z)"
    graph = parsed(model(body, 23), s=np.float32(0.1), z=np.int8(3))
    reference = run(graph, X)["y"]
    assert apply(DeclareOpset(opset=20), graph).fired == 1
    assert [set(node.attributes) & {"block_size"} for node in graph.nodes] == [set(), set()]
    assert np.array_equal(run(graph, X)["y"], reference)


def test_types_and_blocks_keep_it_as_high_as_they_need() -> None:
    body = "d = DequantizeLinear<axis = 0, block_size = 2>(w, s) y = Add(x, d)"
    graph = parsed(model(body, 23), w=np.zeros(4, np.int8), s=np.ones(2, np.float32))
    assert apply(DeclareOpset(opset=20), graph).fired == 1
    assert (graph.opset, graph.model.ir_version) == (21, 10)
    assert next(iter(graph.nodes)).attributes.get_int("block_size") == 2
    body = "d = DequantizeLinear<axis = 0>(w, s) y = Add(x, d)"
    graph = parsed(model(body, 23), w=np.zeros(4, np.int8), s=np.ones(4, np.float32))
    codes = graph.initializer(np.zeros(4, ml_dtypes.int4), "codes")
    next(iter(graph.nodes)).replace_input_with(0, codes)
    result = apply(DeclareOpset(opset=20), graph)
    assert (graph.opset, list(result.refused.values())) == (21, ["DequantizeLinear does not take int4 at opset 20"])


def test_an_opset_that_is_low_enough_stays() -> None:
    graph = parsed(model("y = Relu(x)", 17))
    assert (apply(DeclareOpset(opset=20), graph).fired, graph.opset) == (0, 17)


def test_folds_shape_arithmetic_and_large_tables() -> None:
    body = """
        s = Shape(x) r = Reshape(x, s)
        g = Gather<axis = 0>(table, index) t = Transpose<perm = [1, 0]>(g) m = ReduceMean<keepdims = 0>(t)
        y = Add(r, m)
    """
    table = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)  # above the optimizer's own limit
    graph = parsed(model(body, 20), table=table, index=np.arange(599, -1, -1))
    reference = run(graph, X)["y"]
    assert apply(FoldConstants(), graph).fired == 5
    assert types(graph) == ["Add"]
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-6


def test_removes_what_nothing_reads() -> None:
    graph = parsed(model("dead = Mul(x, unused) y = Relu(x)", 20), unused=np.ones(4, np.float32))
    graph.model.opset_imports["com.microsoft"] = 1
    assert apply(RemoveDead(), graph).fired == 2
    assert (types(graph), dict(graph.model.opset_imports)) == (["Relu"], {"": 20})
    assert list(graph.model.graph.initializers) == []
