"""A Gemm that is a plain linear becomes MatMul and Add."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.raise_linear import RaiseLinear

RNG = np.random.default_rng(0)
X, W, B = (RNG.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 5), (5,)))


def gemm(call: str, before: str = "", after: str = "") -> str:
    return (
        '<ir_version: 10, opset_import: ["" : 20]> vit (float[3,4] x) => (float y)'
        f" {{ {before} g = Gemm{call} {after} y = Identity(g) }}"
    )


@pytest.mark.parametrize(
    ("call", "weight", "operators"),
    [
        ("(x, w, b)", W, ["MatMul", "Add"]),
        ("<transB = 1>(x, w, b)", W.T.copy(), ["MatMul", "Add"]),
        ("<transB = 1>(x, w)", W.T.copy(), ["MatMul"]),
        ("<transB = 0, alpha = 1.0, beta = 1.0>(x, w, b)", W, ["MatMul", "Add"]),
    ],
)
def test_raises_a_linear(call: str, weight: np.ndarray, operators: list[str]) -> None:  # type: ignore[type-arg]
    graph = parsed(gemm(call), w=weight, b=B)
    assert apply(RaiseLinear(), graph).fired == 1
    assert types(graph) == [*operators, "Identity"]
    assert np.abs(run(graph, X)["y"] - (X @ W + (B if "b)" in call else 0))).max() < 1e-5


@pytest.mark.parametrize(
    ("call", "before"),
    [
        ("<alpha = 2.0>(x, w, b)", ""),
        ("<beta = 0.5>(x, w, b)", ""),
        ("<transA = 1>(t, w, b)", "t = Transpose<perm = [1, 0]>(x)"),
        ("(x, computed, b)", "computed = Mul(w, w)"),
    ],
)
def test_leaves_alone_what_is_no_plain_linear(call: str, before: str) -> None:
    graph = parsed(gemm(call, before), w=W, b=B)
    before_types, reference = types(graph), run(graph, X)["y"]
    assert apply(RaiseLinear(), graph).fired == 0
    assert types(graph) == before_types
    assert np.array_equal(run(graph, X)["y"], reference)


def test_names_stay_unique_in_a_module_with_other_operators() -> None:
    graph = parsed(
        gemm("(x, w, b)", after="h = Add(g, b) g2 = Mul(h, b)").replace("Identity(g)", "Identity(g2)"), w=W, b=B
    )
    for node, name in zip(graph.nodes, ("head/Gemm", "head/Add", "head/Mul", "out"), strict=True):
        node.name = name
        if node.op_type != "Identity":
            node.outputs[0].name = f"{name}:0"
    assert apply(RaiseLinear(), graph).fired == 1
    assert [node.name for node in graph.nodes][:3] == ["head/Gemm/MatMul", "head/Gemm/Add", "head/Add"]
    assert np.abs(run(graph, X)["y"] - (X @ W + 2 * B) * B).max() < 1e-5
