"""Two linears with nothing between them become one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.merge_linears import MergeLinears
from vitdeploy.session import Array

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 12, 4)).astype(np.float32)


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def model(body: str, outputs: str = "float y", batch: str = "2", **constants: Array) -> Graph:
    given = {"v": draw(4, 8), "c": draw(8), "w": draw(8, 6), "b": draw(6), "grid": np.array([-1, 3, 4, 8]), **constants}
    head = f'<ir_version: 10, opset_import: ["" : 20]> vit (float[{batch}, 12, 4] x) => ({outputs})'
    return parsed(f"{head} {{ {body} }}", **given)


def check(graph: Graph, fired: int) -> list[str]:
    """The pass fires so often and changes no number; return the operators."""
    expected, before = run(graph, X), types(graph)
    assert apply(MergeLinears(), graph).fired == fired
    if not fired:
        assert types(graph) == before
    for name, values in run(graph, X).items():
        assert values.shape == expected[name].shape
        assert np.abs(values - expected[name]).max() < 1e-5 * np.abs(expected[name]).max()
    return types(graph)


@pytest.mark.parametrize("between", ["p = Add(l, c)", "p = Identity(l)"])
@pytest.mark.parametrize("behind", ["y = Add(m, b)", "y = Relu(m)"])
def test_multiplies_the_weights(between: str, behind: str) -> None:
    body = f"l = MatMul(x, v) {between} m = MatMul(p, w) {behind}"
    if "Identity" in between:
        body = body.replace(between, "").replace("(p, w)", "(l, w)")
    biases = [kind for kind in ("Add",) if "Add" in body]
    ends = ["Relu"] if "Relu" in behind else []
    assert check(model(body), 1) == ["MatMul", *biases, *ends]


@pytest.mark.parametrize("batch", ["2", "batch"])
def test_goes_through_a_reshape_of_the_tokens(batch: str) -> None:
    body = "l = MatMul(x, v) p = Add(l, c) r = Reshape(p, grid) m = MatMul(r, w) y = Add(m, b)"
    assert check(model(body, batch=batch), 1) == ["Reshape", "MatMul", "Add"]


def test_merges_three() -> None:
    body = "l = MatMul(x, v) m = MatMul(l, w) y = MatMul(m, u)"
    graph = model(body, u=draw(6, 5))
    assert check(graph, 2) == ["MatMul"]


LEFT = {
    "a low rank": ("l = MatMul(x, v) y = MatMul(l, w)", {"v": draw(4, 1), "w": draw(1, 6)}, "float y"),
    "an activation": ("l = MatMul(x, v) a = Relu(l) y = MatMul(a, w)", {}, "float y"),
    "an output between": ("l = MatMul(x, v) y = MatMul(l, w)", {}, "float y, float l"),
    "another reader": ("l = MatMul(x, v) y = MatMul(l, w) z = Relu(l)", {}, "float y, float z"),
    "a Reshape of the channels": (
        "l = MatMul(x, v) r = Reshape(l, split) y = MatMul(r, w)",
        {"split": np.array([-1, 24, 4]), "w": draw(4, 6)},
        "float y",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case: str) -> None:
    body, constants, outputs = LEFT[case]
    check(model(body, outputs, **constants), 0)


@pytest.mark.parametrize(("rank", "fired"), [(2, 0), (3, 1)])
def test_the_limit_is_the_number_of_products(rank: int, fired: int) -> None:
    """4 x 4 products for one matrix; 2 · 4 + 2 · 4 for two of rank 2, which are as many."""
    check(model("l = MatMul(x, v) y = MatMul(l, w)", v=draw(4, rank), w=draw(rank, 4)), fired)


def test_a_product_that_overflows_is_left_alone() -> None:
    large = np.full((4, 8), 1e30, np.float32)
    graph = model("l = MatMul(x, v) y = MatMul(l, w)", v=large, w=np.full((8, 6), 1e30, np.float32))
    assert apply(MergeLinears(), graph).fired == 0
