"""RMSNormalization, which opset 23 brought, becomes the operators that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from tests.graphs import apply, dynamo, expected, parsed, redrawn, run, types
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.lower_rms_norm import LowerRmsNorm
from vitdeploy.quantize.half import convert

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
LOWERED = ["Pow", "ReduceMean", "Add", "Sqrt", "Div"]


@pytest.mark.parametrize("shape", [(8,), (5, 8)])
def test_the_numbers_are_pytorchs(shape: tuple[int, ...]) -> None:
    module = redrawn(nn.RMSNorm(shape, eps=1e-3))
    graph = parsed(dynamo(module, X))
    assert types(graph) == ["RMSNormalization"]
    result = apply(LowerRmsNorm(), graph)
    assert (result.fired, result.refused) == (1, {})
    assert types(graph) == [*LOWERED, "Mul"]
    assert apply(DeclareOpset(opset=20), graph).refused == {}
    assert graph.opset == 20
    assert np.abs(run(graph, X)["output_0"] - expected(module, X)["output_0"]).max() < 1e-5


def test_float16_takes_the_mean_square_in_float32() -> None:
    """Squares of 1,000 are beyond float16's 65,504."""
    module, x = redrawn(nn.RMSNorm(8)), 1000 + X
    graph = parsed(dynamo(module, x))
    graph.infer_shapes()
    convert(graph)
    assert apply(LowerRmsNorm(), graph).fired == 1
    assert types(graph)[1:-1] == ["Cast", *LOWERED, "Cast", "Mul"]  # the first and the last are the graph's own
    assert np.abs(run(graph, x)["output_0"] - expected(module, x)["output_0"]).max() < 1e-2


def test_refuses_an_input_of_unknown_rank() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]> vit (float[2, 8] x) => (float y) {
        y = RMSNormalization(x, g)
    }"""
    graph = parsed(text, g=np.ones(8, np.float32))
    graph.model.graph.inputs[0].shape = None
    assert list(LowerRmsNorm().apply(graph).refused.values()) == ["the rank of its input is not known"]
    assert types(graph) == ["RMSNormalization"]
