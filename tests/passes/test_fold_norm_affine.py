"""Scale and bias of a LayerNorm are folded into the linears that read it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.fold_norm_affine import FoldNormAffine
from vitdeploy.session import Array

C = 8  # channels, and tokens
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, C, C)).astype(np.float32)


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "gamma": draw(C), "beta": draw(C), "w": draw(C, 5), "b": draw(5), "w2": draw(C, 5),
    "grid": np.array([2, 4, 2, C]), "back": np.array([2, C, C]), "sizes": np.array([3, 5]),
    "zeros": np.array([0, 1, 0, 0, 0, 0]), "first": np.array(0),
}  # fmt: skip


def model(body: str, affine: str = "gamma, beta", outputs: str = "float y") -> Graph:
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> vit (float[2,{C},{C}] x) => ({outputs})'
        f" {{ n = LayerNormalization<axis = -1>(x, {affine}) {body} }}"
    )
    return parsed(text, **{name: value for name, value in CONSTANTS.items() if name in text})


def check(graph: Graph, fired: int) -> None:
    reference = run(graph, X)
    before = types(graph)
    norm = next(node for node in graph.nodes if node.op_type == "LayerNormalization")
    assert apply(FoldNormAffine(), graph).fired == fired
    for name, values in run(graph, X).items():
        assert np.abs(values - reference[name]).max() < 1e-5
    if fired:
        scale = norm.inputs[1]
        assert scale is not None and scale.const_value is not None
        assert (scale.const_value.numpy() == 1).all()
        assert len(norm.inputs) == 2
        assert norm.outputs[0].name != "n", "another value has another name"
        assert apply(FoldNormAffine(), graph).fired == 0
    else:
        assert types(graph) == before
        assert norm.outputs[0].name == "n"


@pytest.mark.parametrize("affine", ["gamma, beta", "gamma"])
@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(n, w)",
        "m = MatMul(n, w) y = Add(m, b)",
        "m = MatMul(n, w) m2 = MatMul(n, w2) y = Add(m, m2)",
        "g = Reshape(n, grid) t = Transpose<perm = [0, 2, 1, 3]>(g) y = MatMul(t, w)",
        "f = Gather<axis = 1>(n, first) y = MatMul(f, w)",  # the class token
    ],
)
def test_folds_into_every_linear(body: str, affine: str) -> None:
    check(model(body, affine), 1)


def test_another_norm_keeps_the_constants_that_both_had() -> None:
    check(model("m = MatMul(n, w) y1 = LayerNormalization<axis = -1>(x, gamma, beta) y = Concat<axis = -1>(m, y1)"), 1)


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(n, w) r = ReduceMean(n) y = Add(m, r)",  # a reader that is no linear
        "m = MatMul(n, w) m2 = MatMul(x, w) y = Add(m, m2)",  # the weight is another linear's too
        "m = MatMul(n, w) m2 = MatMul(n, w) y = Add(m, m2)",
        "p = Pad(n, zeros) y = MatMul(p, w)",  # what is padded has no bias
        "t = Transpose<perm = [0, 2, 1]>(n) y = MatMul(t, w)",  # the linear mixes tokens
        "y = MatMul(x, n)",
        "q = Cast<to = 6>(n) f = Cast<to = 1>(q) y = MatMul(f, w)",  # as where the linear is INT8
    ],
)
def test_leaves_alone_what_does_not_fit(body: str) -> None:
    check(model(body), 0)


def test_leaves_one_scale_for_all_channels_alone() -> None:
    graph = model("y = MatMul(n, w)")
    for index, value in enumerate((draw(1), draw(1)), 1):
        next(graph.nodes).replace_input_with(index, graph.initializer(value, f"one{index}"))
    check(graph, 0)


def test_leaves_an_output_alone() -> None:
    check(model("y = MatMul(n, w)", outputs=f"float[2,{C},{C}] n, float y"), 0)
