"""Where `Attention` would give other numbers than MatMul, Add and Softmax: sizes that only broadcast later."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, raised, run, types
from vitdeploy.graph.model import array
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.session import Array

DRAW = np.random.default_rng(1)


def drawn(*shape: int) -> Array:
    return DRAW.standard_normal(shape).astype(np.float32)


def attend(scores: Array, v: Array) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize(
    ("q", "k", "v", "bias", "reason"),
    [
        ("1,3,5,4", "1,3,6,4", "2,3,6,4", "2,1,5,6", "another batch or more heads"),
        ("1,3,5,4", "1,3,6,4", "1,3,6,4", "2,1,5,6", "another batch or more heads"),
        ("1,3,5,4", "1,3,6,4", "N,3,6,4", "N,1,5,6", "another batch or more heads"),
        ("2,1,5,4", "2,1,6,4", "2,3,6,4", "1,3,5,6", "another batch or more heads"),
        ("3,5,4", "3,6,4", "2,3,6,4", "2,1,5,6", "another batch or more heads"),
        ("2,3,5,4", "2,3,1,4", "2,3,6,4", "5,6", "more queries or keys"),
        ("2,3,1,4", "2,3,6,4", "2,3,6,4", "5,6", "more queries or keys"),
        ("1,3,5,4", "1,3,6,4", "2,3,6,4", "1,1,5,6", "not have the same batch and heads"),
        ("1,3,5,4", "1,3,6,4", "N,3,6,4", "1,1,5,6", "not have the same batch and heads"),
        ("2,1,5,4", "2,1,6,4", "2,3,6,4", "1,1,5,6", "not have the same batch and heads"),
    ],
)
def test_refuses_scores_that_are_repeated_later(q: str, k: str, v: str, bias: str, reason: str) -> None:
    """MatMul and Add repeat a batch of one or a single head; `Attention` does not."""
    shapes = {"q": q, "k": k, "v": v, "b": bias}
    inputs = ", ".join(f"float[{shape}] {name}" for name, shape in shapes.items())
    rank = len(q.split(","))
    swap = [*range(rank - 2), rank - 1, rank - 2]
    text = (
        f'<ir_version: 9, opset_import: ["" : 18]> vit ({inputs}) => (float[2,3,5,4] y) {{'
        f" kt = Transpose<perm = {swap}>(k) s = MatMul(q, kt) a = Add(s, b) p = Softmax<axis = -1>(a)"
        " y = MatMul(p, v) }"
    )
    fed = {name: drawn(*(2 if n == "N" else int(n) for n in shape.split(","))) for name, shape in shapes.items()}
    graph, _, refused = raised(text)
    assert [reason in text for text in refused.values()] == [True], refused
    (y,) = run(graph, fed["q"], **{name: fed[name] for name in "kvb"}).values()
    right = attend(fed["q"] @ fed["k"].swapaxes(-2, -1) + fed["b"], fed["v"])
    assert np.abs(y - right).max() < 1e-5


PAST = ", float[1,2,3,4] pk, float[1,2,3,4] pv"


@pytest.mark.parametrize(
    ("past", "call", "mask"),
    [
        (PAST, "y, ok, ov = Attention(q, k, v, m, pk, pv) ", np.arange(24).reshape(3, 8) % 5 * 1.0),
        (PAST, "y, ok, ov = Attention(q, k, v, m, pk, pv) ", np.arange(24).reshape(3, 8) % 5 > 1),
        (PAST, "y, ok, ov = Attention(q, k, v, m, pk, pv) ", np.zeros((1, 1, 3, 8))),
        ("", "y = Attention(q, k, v, m) ", np.zeros((3, 3))),  # a short mask hides the other keys
        ("", "y = Attention(q, k, v, m) ", np.ones((3, 7), bool)),
    ],
)
def test_a_mask_of_other_sizes_than_the_scores_stays(past: str, call: str, mask: np.ndarray) -> None:
    constant = mask if mask.dtype == bool else mask.astype(np.float32)
    graph, _, _ = raised(
        '<ir_version: 11, opset_import: ["" : 23]> vit (float[1,2,3,4] q, float[1,2,5,4] k, float[1,2,5,4] v'
        f"{past}) => (float y) {{ {call} }}",
        m=constant,
    )
    (core,) = (node for node in graph.nodes if node.op_type == "Attention")
    assert np.array_equal(array(core.inputs[3]), constant)
    assert apply(LowerPrimitives(), graph).fired == 0


def test_a_transpose_across_heads_is_no_batched_transpose() -> None:
    """Both reshapes fit (batch, heads, tokens, size), but what the Transpose reads has merged heads and tokens."""
    graph, _, _ = raised(
        '<ir_version: 9, opset_import: ["" : 18]> vit (float[1,2,4,3] q, float[1,2,4,3] k, float[1,2,4,3] v)'
        " => (float[1,2,4,4] y) { merged = Reshape(k, s1) turned = Transpose<perm = [0, 2, 1]>(merged)"
        " kt = Reshape(turned, s2) s = MatMul(q, kt) p = Softmax<axis = -1>(s) y = MatMul(p, v) }",
        s1=np.array([1, 8, 3]),
        s2=np.array([1, 2, 3, 4]),
    )
    q, k, v = (drawn(1, 2, 4, 3) for _ in "qkv")
    (y,) = run(graph, q, k=k, v=v).values()
    right = attend(q @ k.reshape(1, 8, 3).swapaxes(1, 2).reshape(1, 2, 3, 4), v)
    assert types(graph).count("Attention") == 1
    assert np.abs(y - right).max() < 1e-5
