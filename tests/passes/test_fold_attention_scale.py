"""The scale of an attention is folded into the columns of its query, in every packing order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.graphs import HEADS, SIZE, TOKENS, apply, differs, expected, images, parsed, raised, run, tokens, types
from vitdeploy.passes.fold_attention_scale import FoldAttentionScale
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.session import Array

C = HEADS * SIZE
SCALE = 0.3
HEAD = {f"take{i}": np.array(i) for i in range(3)} | {f"from{i}": np.array([i]) for i in range(4)}
SHAPES = {
    "three_first": [0, TOKENS, 3, HEADS, SIZE],  # timm: (q, k, v), heads, head size
    "heads_first": [0, TOKENS, HEADS, 3, SIZE],
    "size_first": [0, TOKENS, SIZE, 3, HEADS],
    "three_last": [0, TOKENS, HEADS, SIZE, 3],
    "per_head": [0, TOKENS, HEADS, 3 * SIZE],
    "heads": [0, TOKENS, HEADS, SIZE],
    "merged": [0, TOKENS, 3 * C],
}
CONSTANTS: dict[str, Any] = {name: np.array(shape) for name, shape in SHAPES.items()} | HEAD
CONSTANTS |= {"axis": np.array([2]), "last": np.array([3]), "ends": np.array([SIZE]), "thirds": np.array([C, C, C])}
CONSTANTS |= {"back": np.array([-1]), "start": np.array([-2 * C - 1]), "past": np.array([-(1 << 62)])}


def draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) / 2


def vit(q: str, k: str = "", v: str = "", *, linear: str = "m = MatMul(x, w) l = Add(m, b)", tail: str = "") -> str:
    return (
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float[batch,{TOKENS},{C}] x) => (float y)'
        f" {{ {linear} {q} {k} {v} o = Attention<scale = {SCALE}>(q, k, v) {tail or 'y = Identity(o)'} }}"
    )


def check(model: str, fired: int, reason: str | None = None) -> Array:
    """Return the columns that the pass scaled, as a mask, and check that the numbers are the same."""
    weight = draw(C, 3 * C)
    graph = parsed(model, **CONSTANTS, w=weight, b=draw(3 * C), gamma=draw(SIZE), square=draw(C, C))
    before, inputs = types(graph), [tokens(1), tokens(3)]
    reference = [run(graph, x)["y"] for x in inputs]
    result = apply(FoldAttentionScale(), graph)
    assert (result.fired, *result.refused.values()) == ((fired,) if reason is None else (fired, reason))
    for x, y in zip(inputs, reference, strict=True):
        assert np.abs(run(graph, x)["y"] - y).max() < 1e-5 * np.abs(y).max()
    assert types(graph) == before
    (core,) = (n for n in graph.nodes if n.op_type == "Attention")
    assert core.attributes.get_float("scale") == pytest.approx(1.0 if fired else SCALE)
    assert apply(FoldAttentionScale(), graph).fired == 0
    (product,) = (n for n in graph.nodes if n.op_type == "MatMul" and n.name == "MatMul.0")
    return np.asarray(product.inputs[1].const_value.numpy() != weight).any(axis=0)


def picked(kind: str) -> str:
    return f"f = Reshape(l, {kind}) "


# Each takes q, k and v from the packed projection, and says which columns are the query's.
C_ = np.arange(3 * C)
PACKINGS = {
    "transpose, gather": (
        picked("three_first") + "t = Transpose<perm = [2, 0, 3, 1, 4]>(f)"
        " q = Gather<axis = 0>(t, take0) k = Gather<axis = 0>(t, take1) v = Gather<axis = 0>(t, take2)",
        C_ < C,
    ),
    "query in the middle": (
        picked("three_first") + "t = Transpose<perm = [2, 0, 3, 1, 4]>(f)"
        " q = Gather<axis = 0>(t, take1) k = Gather<axis = 0>(t, take0) v = Gather<axis = 0>(t, take2)",
        (C_ >= C) & (C_ < 2 * C),
    ),
    "slice, squeeze": (
        picked("three_first") + "t = Transpose<perm = [0, 3, 2, 1, 4]>(f)"
        " q1 = Slice(t, from2, from3, axis) q = Squeeze(q1, axis) k1 = Slice(t, from0, from1, axis)"
        " k = Squeeze(k1, axis) v1 = Slice(t, from1, from2, axis) v = Squeeze(v1, axis)",
        C_ >= 2 * C,
    ),
    "per head, split": (
        picked("per_head") + "t = Transpose<perm = [0, 2, 1, 3]>(f) q, k, v = Split<axis = -1, num_outputs = 3>(t)",
        C_ % (3 * SIZE) < SIZE,
    ),
    "per head, five axes": (
        picked("heads_first") + "t = Transpose<perm = [3, 0, 2, 1, 4]>(f)"
        " q = Gather<axis = 0>(t, take0) k = Gather<axis = 0>(t, take2) v = Gather<axis = 0>(t, take1)",
        C_ % (3 * SIZE) < SIZE,
    ),
    "in turns": (
        picked("three_last") + "t = Transpose<perm = [4, 0, 2, 1, 3]>(f)"
        " q = Gather<axis = 0>(t, take1) k = Gather<axis = 0>(t, take0) v = Gather<axis = 0>(t, take2)",
        C_ % 3 == 1,
    ),
    "heads last": (
        picked("size_first") + "t = Transpose<perm = [3, 0, 4, 1, 2]>(f)"
        " q = Gather<axis = 0>(t, take2) k = Gather<axis = 0>(t, take0) v = Gather<axis = 0>(t, take1)",
        C_ % (3 * HEADS) >= 2 * HEADS,
    ),
    "split first": (
        "a, b1, c = Split<axis = 2>(l, thirds)"
        " a1 = Reshape(a, heads) b2 = Reshape(b1, heads) c1 = Reshape(c, heads) q = Transpose<perm = [0, 2, 1, 3]>(b2)"
        " k = Transpose<perm = [0, 2, 1, 3]>(a1) v = Transpose<perm = [0, 2, 1, 3]>(c1)",
        (C_ >= C) & (C_ < 2 * C),
    ),
    "backwards": (
        "a1 = Slice(l, start, past, axis, back) a = Reshape(a1, heads) q = Transpose<perm = [0, 2, 1, 3]>(a)"
        " s = Slice(l, fromc, from3c, axis) f = Reshape(s, two) t = Transpose<perm = [2, 0, 3, 1, 4]>(f)"
        " k = Gather<axis = 0>(t, take0) v = Gather<axis = 0>(t, take1)",
        C_ < C,
    ),
}
CONSTANTS |= {"fromc": np.array([C]), "from3c": np.array([3 * C]), "two": np.array([0, TOKENS, 2, HEADS, SIZE])}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_finds_the_query_in_any_packing(packing: str, bias: bool) -> None:
    body, columns = PACKINGS[packing]
    linear = "m = MatMul(x, w) l = Add(m, b)" if bias else "l = MatMul(x, w)"
    assert np.array_equal(check(vit(body, linear=linear), 1), columns)


def test_tokens_may_be_regrouped() -> None:
    body = PACKINGS["transpose, gather"][0].replace("2, 0, 3, 1, 4", "2, 0, 3, 4, 1")  # attention over channels (XCiT)
    assert np.array_equal(check(vit(body), 1), C_ < C)


def test_folds_into_a_convolution() -> None:
    model = (
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float[batch,{C},5,5] x) => (float y)'
        " { c = Conv(x, w, b) f = Reshape(c, packed) t = Transpose<perm = [1, 0, 2, 4, 3]>(f)"
        " q = Gather<axis = 0>(t, take1) k = Gather<axis = 0>(t, take0) v = Gather<axis = 0>(t, take2)"
        f" y = Attention<scale = {SCALE}>(q, k, v) }}"
    )
    constants = {"w": draw(3 * C, C, 1, 1), "b": draw(3 * C), "packed": np.array([0, 3, HEADS, SIZE, 25])}
    graph = parsed(model, **CONSTANTS, **constants)
    x = draw(2, C, 5, 5)
    reference = run(graph, x)["y"]
    assert apply(FoldAttentionScale(), graph).fired == 1
    weight = np.asarray(next(graph.nodes).inputs[1].const_value.numpy())
    assert np.array_equal((weight != constants["w"]).any(axis=(1, 2, 3)), (C_ >= C) & (C_ < 2 * C))
    assert np.abs(run(graph, x)["y"] - reference).max() < 1e-5 * np.abs(reference).max()


GATHERED = PACKINGS["transpose, gather"][0]
REFUSED = {
    "norm": (
        vit(GATHERED.replace("q = Gather", "p = Gather") + " q = LayerNormalization(p, gamma)"),
        "LayerNormalization.7 (LayerNormalization) stands between its query and a linear",
    ),
    "rotary": (
        vit(GATHERED.replace("q = Gather", "p = Gather") + " r = Mul(p, gamma) q = Add(r, p)"),
        "Add.8 (Add) stands between its query and a linear",
    ),
    "keys are queries": (vit(GATHERED.replace("take1", "take0")), "another node reads its query too"),
    "query is read": (
        vit(GATHERED, tail="p = Add(o, q) y = Identity(p)"),
        "another node reads its query too",
    ),
    "projection is read": (
        vit(GATHERED, tail="s = ReduceMax<keepdims = 0>(l) y = Add(o, s)"),
        "another node reads its query too",
    ),
    "before the bias": (
        vit(GATHERED, tail="s = ReduceMax<keepdims = 0>(m) y = Add(o, s)"),
        "Add.1 (Add) stands between its query and a linear",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    model, reason = REFUSED[case]
    assert not check(model, 0, reason).any()


def test_what_reads_other_columns_does_not_matter() -> None:
    check(vit(GATHERED, tail="p = Add(o, v) y = Add(p, k)"), 1)


def test_refuses_a_reshape_for_one_number_of_tokens_where_it_varies() -> None:
    model = vit(GATHERED).replace(f"{TOKENS},{C}] x", f"tokens,{C}] x")
    graph = parsed(model, **CONSTANTS, w=draw(C, 3 * C), b=draw(3 * C))
    result = apply(FoldAttentionScale(), graph)
    assert result.fired == 0
    (reason,) = result.refused.values()
    assert reason.startswith("the columns of its query are not known: Reshape.2 does not run on one image")


def test_refuses_when_something_reads_another_image_of_the_batch() -> None:
    tail = "s = Slice(l, from1, from2, from0) r = ReduceMax<keepdims = 0>(s) y = Add(o, r)"
    graph = parsed(vit(GATHERED, tail=tail), **CONSTANTS, w=draw(C, 3 * C), b=draw(3 * C))
    (reason,) = apply(FoldAttentionScale(), graph).refused.values()
    assert reason == "the columns of its query are not known: Slice.8 gives an empty result for a batch of one"


def test_refuses_a_choice_that_depends_on_the_image() -> None:
    tail = "n = Shape(o) s = Gather<axis = 2>(l, n) r = ReduceMax<keepdims = 0>(s) y = Add(o, r)"
    graph = parsed(vit(GATHERED, tail=tail), **CONSTANTS, w=draw(C, 3 * C), b=draw(3 * C))
    (reason,) = apply(FoldAttentionScale(), graph).refused.values()
    assert reason == "the columns of its query are not known: how Gather.9 moves numbers depends on the image"


def test_an_attention_without_a_stated_scale_is_refused() -> None:
    graph = parsed(vit(GATHERED).replace(f"<scale = {SCALE}>", ""), **CONSTANTS, w=draw(C, 3 * C), b=draw(3 * C))
    assert list(apply(FoldAttentionScale(), graph).refused.values()) == ["its head size is not known"]


def test_a_query_that_no_linear_makes_is_refused() -> None:
    shape = f"float[1,{HEADS},{TOKENS},{SIZE}]"
    graph = parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit ({shape} q, {shape} k) => (float y)'
        f" {{ y = Attention<scale = {SCALE}>(q, k, k) }}"
    )
    assert apply(FoldAttentionScale(), graph).refused == {"Attention.0": "its query is not the output of a linear"}


def test_a_weight_that_another_linear_shares_does_not_change() -> None:
    assert check(vit(GATHERED, tail="m2 = MatMul(x, w) r = ReduceMax<keepdims = 0>(m2) y = Add(o, r)"), 1).sum() == C


@pytest.mark.parametrize("kind", ["dynamo", "legacy-17", "legacy-20", "dynamo-batch"])
def test_the_vit_keeps_its_numbers_and_loses_its_scales(kind: str, vit: Any, exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported(kind))
    result = apply(FoldAttentionScale(), graph)
    assert (result.fired, result.refused) == (2, {})
    assert apply(LowerPrimitives(), graph).fired == 2
    assert "Mul" not in types(graph)
    for batch in (1, 3) if kind.endswith("batch") else (1,):
        assert differs(graph, images(batch), expected(vit, images(batch))) is None
