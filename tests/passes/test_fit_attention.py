"""Attention is padded and split for a fused kernel, and keeps its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.dialect import Dialect, FusedAttention
from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, order
from vitdeploy.passes.fit_attention import FitAttention
from vitdeploy.passes.lower_primitives import LowerPrimitives

FIT = FitAttention(kernel=FusedAttention(smallest=16, largest=64, multiple=8))
BIASES = {
    "none": None,
    "for each score": ("float16", (6, 5)),
    "4-D": ("float16", (1, 1, 6, 5)),
    "for each key": ("float16", (1, 1, 1, 5)),
    "1-D": ("float16", (5,)),
    "boolean": ("bool", (6, 5)),
}


def attention(
    batch: str = "2", heads: int = 3, queries: str = "6", keys: int = 5, d: str = "16", e: int = 16, *,
    bias: tuple[str, tuple[int, ...]] | None = None, dtype: str = "float16",
) -> Graph:  # fmt: skip
    """One Attention on 4-D operands, with its bias as a fourth input."""
    shapes = f"{dtype}[{batch},{heads},{queries},{d}] q, {dtype}[{batch},{heads},{keys},{d}] k, "
    shapes += f"{dtype}[{batch},{heads},{keys},{e}] v"
    if bias is not None:
        shapes += f", {bias[0]}[{','.join(map(str, bias[1]))}] bias"
    graph = parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit ({shapes}) => ({dtype} y) {{ '
        f"o = Attention<scale = 0.3>(q, k, v{', bias' if bias else ''}) y = Identity(o) }}"
    )
    next(graph.nodes).name = "site/Attention"
    return graph


def feeds(graph: Graph, batch: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values = {}
    for value in graph.model.graph.inputs:
        shape = [n if isinstance(n, int) else batch for n in value.shape or ()]
        drawn = rng.standard_normal(shape)
        values[value.name or ""] = drawn > -1 if str(value.dtype) == "BOOL" else drawn.astype(np.float16)
    return values


def softmax_of_scores(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
    """Attention in float64, from its definition."""
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-2, -1) * 0.3
    if bias is not None:
        scores = np.where(bias, scores, -np.inf) if bias.dtype == bool else scores + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def check_numbers(graph: Graph, batch: int = 2) -> None:
    fed = feeds(graph, batch)
    inputs = dict(fed)
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    reference = softmax_of_scores(**fed)
    assert y.shape == reference.shape
    assert np.abs(y - reference).max() < 4e-3, "two steps of float16 at 1"


@pytest.mark.parametrize(
    ("d", "e", "before", "after"),
    [
        (16, 32, ["Pad", "Pad"], []),  # LeViT
        (32, 16, ["Pad"], ["Slice"]),
        (8, 8, ["Pad"] * 3, ["Slice"]),  # too small for a kernel
        (36, 36, ["Pad"] * 3, ["Slice"]),  # MobileViT: TensorRT's guide asks for a multiple of 8
        (12, 40, ["Pad", "Pad"], []),
    ],
)
@pytest.mark.parametrize("batch", [2, "n"])
def test_heads_are_padded_to_one_size(d: int, e: int, before: list[str], after: list[str], batch: int | str) -> None:
    graph = attention(str(batch), d=str(d), e=e)
    result = apply(FIT, graph)
    assert (result.fired, result.refused) == (1, {})
    assert types(graph) == [*before, "Attention", *after, "Identity"]
    assert all((node.name or "").startswith("site/Attention") for node in list(graph.nodes)[:-1])
    apply(LowerPrimitives(), graph)
    assert types(graph) == [*before, "Mul", "Transpose", "MatMul", "Softmax", "MatMul", *after, "Identity"]
    for size in (2,) if batch == 2 else (1, 3):
        check_numbers(graph, size)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("d", [16, 24])
def test_queries_of_a_single_head_are_split_in_two(bias: str, d: int) -> None:
    graph = attention("1", heads=1, d=str(d), e=16, bias=BIASES[bias])
    result = apply(FIT, graph)
    assert (result.fired, result.refused) == (1, {})
    core = next(n for n in graph.nodes if n.op_type == "Attention")
    assert [tuple(v.shape or ()) for v in core.inputs[:3] if v] == [(1, 2, 3, d), (1, 2, 5, d), (1, 2, 5, d)]
    assert apply(LowerPrimitives(), graph).fired == 1
    check_numbers(graph)


@pytest.mark.parametrize(
    "graph",
    [
        attention(),
        attention(d="64", e=64),
        attention("n", heads=1),
        attention("2", heads=1),
        attention(d="16", e=32, dtype="float"),
        attention(d="n"),
        attention("1", heads=1, dtype="float"),
    ],
    ids=["fits", "largest", "any batch", "batch 2", "float32", "unknown size", "single head in float32"],
)
def test_leaves_what_fits_and_what_has_no_kernel(graph: Graph) -> None:
    assert apply(FIT, graph).fired == 0
    assert types(graph) == ["Attention", "Identity"]


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (attention(d="72", e=72), "its head size, 72, is not one of 16 to 64 in steps of 8"),
        (attention(d="16", e=72), "its head size, 16 and 72, is not one of 16 to 64 in steps of 8"),
        (attention("1", 1, queries="n"), "its single head has an unknown number of queries"),
    ],
)
def test_refuses_what_cannot_fit(graph: Graph, reason: str) -> None:
    result = apply(FIT, graph)
    assert (result.fired, result.refused) == (0, {"site/Attention": reason})
    assert types(graph) == ["Attention", "Identity"]


@pytest.mark.parametrize("bias", [None, ("float16", (7, 5)), ("bool", (1, 1, 7, 5)), ("float16", (5,))])
@pytest.mark.parametrize("e", [16, 32])
def test_an_odd_number_of_queries_gets_one_more(bias: tuple[str, tuple[int, ...]] | None, e: int) -> None:
    graph = attention("1", 1, queries="7", d="16", e=e, bias=bias)
    result = apply(FIT, graph)
    assert (result.fired, result.refused) == (1, {})
    core = next(n for n in graph.nodes if n.op_type == "Attention")
    assert [tuple(v.shape or ()) for v in core.inputs[:2] if v] == [(1, 2, 4, e), (1, 2, 5, e)]
    apply(LowerPrimitives(), graph)
    check_numbers(graph)


def with_key_heads(key_heads: int) -> Graph:
    """Six heads of queries that share `key_heads` of keys and values."""
    return parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float16[2,6,6,16] q, float16[2,{key_heads},5,16] k, '
        f"float16[2,{key_heads},5,16] v) => (float16 y) {{ o = Attention<scale = 0.3>(q, k, v) y = Identity(o) }}"
    )


@pytest.mark.parametrize("key_heads", [1, 2, 3])
@pytest.mark.parametrize("rewrites", [[LowerPrimitives()], [FIT, LowerPrimitives()]], ids=["broadcast", "fitted"])
def test_heads_that_share_keys(key_heads: int, rewrites: list[Pass]) -> None:
    graph = with_key_heads(key_heads)
    for rewrite in rewrites:
        assert apply(rewrite, graph).refused == {}
    assert types(graph).count("Softmax") == 1
    fed = feeds(graph)
    inputs = dict(fed)
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    reference = softmax_of_scores(fed["q"], *(fed[name].repeat(6 // key_heads, axis=1) for name in "kv"))
    assert np.abs(y - reference).max() < 4e-3, "two steps of float16 at 1"


def test_only_targets_with_such_a_kernel_have_the_pass() -> None:
    plain = Dialect(opset=20, attention="primitives")
    assert not any(isinstance(p, FitAttention) for p in order.lowering(plain))
    fitted = order.lowering(Dialect(opset=20, attention="primitives", fused_attention=FIT.kernel))
    assert [p.name for p in fitted].index("fit-attention") < [p.name for p in fitted].index("lower-primitives")
