"""BF16: typed throughout where the graph decides the type, else only stored weights."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from tests.graphs import apply, images, parsed, raised, run, types
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import array
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.quantize import bfloat16, half


def test_typed_everything_but_the_edges_is_bfloat16(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    before = graph.weight_bytes()
    record = bfloat16.quantize(graph, structure, (), typed=True)
    apply(LowerPrimitives(), graph)
    inside = {v.dtype for node in graph.nodes if node.op_type != "Cast" for v in node.outputs}
    assert ir.DataType.FLOAT not in inside
    assert ir.DataType.FLOAT16 not in inside
    assert [v.dtype for v in (*graph.model.graph.inputs, *graph.model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert graph.weight_bytes() < 0.55 * before
    assert str(record) == "bfloat16 throughout"
    result = apply(DeclareOpset(opset=20), graph)
    assert (result.fired, graph.opset) == (1, 22)  # the first whose Conv takes bfloat16
    assert "Conv does not take bfloat16 at opset 20" in result.refused.values()


def test_stored_the_numbers_are_those_of_rounded_weights(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    weight = array(next(n for n in graph.nodes if n.op_type == "MatMul").inputs[1])
    reference = run(graph, images())["output_0"]
    before = graph.weight_bytes()
    record = bfloat16.quantize(graph, structure, ("head",), typed=False)
    first = next(n for n in graph.nodes if n.op_type == "MatMul")
    cast = first.inputs[1].producer()
    assert cast is not None
    assert np.array_equal(array(cast.inputs[0]), weight.astype(ml_dtypes.bfloat16))
    assert types(graph).count("Cast") == 9
    assert (record.scope, record.float32) == ("weights", {"head": "keep: head"})
    apply(RemoveDead(), graph)  # the old weights
    assert graph.weight_bytes() < 0.6 * before
    y = run(graph, images())["output_0"]
    assert 0 < np.abs(y - reference).max() < 0.02 * np.abs(reference).max()


def test_a_mask_of_the_lowest_float32_stays_finite() -> None:
    """Rounded to the nearest bfloat16 it would be minus infinity, and a fully masked row NaN."""
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float y) { a = Add(x, m) y = Neg(a) }'
    graph = parsed(text, m=np.array([np.finfo(np.float32).min, 1e5], np.float32))
    half.convert(graph, to=ir.DataType.BFLOAT16)
    (mask,) = [v.const_value for v in graph.model.graph.initializers.values()]
    assert mask is not None
    numbers = mask.numpy().astype(np.float32)
    assert np.isfinite(numbers).all()
    assert numbers[1] == pytest.approx(1e5, rel=0.01)  # beyond float16
    y = ReferenceEvaluator(ir.to_proto(graph.model)).run(None, {"x": np.ones(2, np.float32)})[0]
    assert y.dtype == np.float32
    assert y[1] == pytest.approx(-1e5, rel=0.01)


def test_keep_holds_and_must_match(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    record = bfloat16.quantize(graph, structure, ("head",), typed=True)
    heads = [n for n in graph.nodes if n.name in structure.linears[-1].nodes and n.op_type == "MatMul"]
    assert [n.outputs[0].dtype for n in heads] == [ir.DataType.FLOAT]
    assert (record.scope, record.float32) == ("all", {"head": "keep: head"})
    with pytest.raises(QuantizeError, match="'haed' matches no linear"):
        bfloat16.quantize(graph, structure, ("haed",), typed=True)
