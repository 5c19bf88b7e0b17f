"""Attention whose scores are not (batch, heads, tokens, tokens) becomes the same node, with the same numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.attention_forms import (
    FORMS,
    HEADS,
    SIDE,
    TOKENS,
    WIDTH,
    Block,
    Form,
    Tensor,
    Wrapped,
    decomposed,
    five_axes,
    one_head_sdpa,
    torch_pooling,
)
from tests.graphs import differs, dynamo, expected, legacy, parsed, raised, redrawn, run, types
from vitdeploy.graph.model import Graph, array, dims
from vitdeploy.passes._attention_form import Form as AttentionForm
from vitdeploy.passes._attention_form import FormWriter, pair_groups, plan_view
from vitdeploy.passes.raise_attention import RaiseAttention


def tokens(batch: int) -> Any:
    return np.random.default_rng(0).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)


def check(model: bytes, module: nn.Module, form: Form, batches: tuple[int, ...]) -> Graph:
    graph, structure, refused = raised(model)
    assert refused == {}
    assert (types(graph).count("Attention"), types(graph).count("Softmax")) == (1, 0)
    (site,) = structure.attention
    assert (site.heads, site.tokens) == FORMS[form]
    for batch in batches:
        assert differs(graph, tokens(batch), expected(module, tokens(batch))) is None
    return graph


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("batch", [1, 2])
def test_raises_any_rank(form: Form, batch: int) -> None:
    module = redrawn(Wrapped(form))
    check(legacy(module, tokens(batch)), module, form, (batch,))


LEGACY_LOSES_ITS_SIZES = torch_pooling
"""The legacy exporter slices the weights of nn.MultiheadAttention by sizes of the repeated query, at run time."""


@pytest.mark.parametrize("form", [f for f in FORMS if f is not LEGACY_LOSES_ITS_SIZES], ids=lambda form: form.__name__)
def test_raises_any_rank_with_a_batch_that_varies(form: Form) -> None:
    module = redrawn(Wrapped(form))
    check(legacy(module, tokens(2), dynamic=True), module, form, (1, 3))


BY_DYNAMO = [f for f in FORMS if f not in (one_head_sdpa, five_axes)]
"""The exporter itself asserts that scaled_dot_product_attention has four axes: see `vitdeploy.onnx_export`."""


@pytest.mark.parametrize("form", BY_DYNAMO, ids=lambda form: form.__name__)
@pytest.mark.parametrize("dynamic", [False, True])
def test_raises_any_rank_from_dynamo(form: Form, dynamic: bool) -> None:
    module = redrawn(Wrapped(form))
    check(dynamo(module, tokens(2), opset=20, dynamic=dynamic), module, form, (1, 3) if dynamic else (2,))


def test_decomposed_positions_are_added_up_where_they_are_small() -> None:
    """One broadcast sum of both terms, and no Expand of either."""
    module = redrawn(Wrapped(decomposed))
    graph = check(legacy(module, tokens(1)), module, decomposed, (1,))
    assert "Expand" not in types(graph)
    assert [dims(n.outputs[0]) for n in graph.nodes if n.op_type == "Add" and len(dims(n.outputs[0]) or ()) == 6] == [
        (1, HEADS, SIDE, SIDE, SIDE, SIDE)
    ]


def linear_attention(m: Block, x: Tensor) -> Tensor:
    """Softmax of q and of k apart: there is no map of queries by keys."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    return m.unmerged(q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v), x.shape[0])


def test_linear_attention_is_no_site() -> None:
    _, structure, refused = raised(legacy(redrawn(Wrapped(linear_attention)), tokens(1)))
    assert (structure.attention, refused) == ((), {})


def keys_regrouped(m: Block, x: Tensor) -> Tensor:
    """A view in which one row of scores is two: its softmax is over half of the keys."""
    q, k, v = (m.heads(f(x)) for f in (m.q, m.k, m.v))
    scores = (q @ k.transpose(-2, -1)).view(x.shape[0], HEADS, 2 * TOKENS, TOKENS // 2).softmax(-1)
    return m.unmerged(scores.view(x.shape[0], HEADS, TOKENS, TOKENS) @ v, x.shape[0])


def test_refuses_a_view_that_changes_the_keys() -> None:
    _, structure, refused = raised(legacy(redrawn(Wrapped(keys_regrouped)), tokens(1)))
    assert ["Reshape stands between" in reason for reason in refused.values()] == [True]
    assert len(structure.attention) == 1


def test_pairs_of_axes() -> None:
    assert pair_groups((2, 3, 20), (6, 4, 5)) == [(slice(0, 2), slice(0, 1)), (slice(2, 3), slice(1, 3))]
    assert pair_groups((None, 4, 5), (None, 20)) == [(slice(0, 1), slice(0, 1)), (slice(1, 3), slice(1, 2))]
    assert pair_groups((1, 4), (4,)) == [(slice(0, 1), slice(0, 0)), (slice(1, 2), slice(0, 1))]
    with pytest.raises(ValueError, match="not views of the same"):
        pair_groups((2, 3), (4,))


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The sizes of a value, of the view that it broadcasts against, and of another view of the same elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def regroup() -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(factors)), max_size=3)))
        return tuple(math.prod(factors[a:b]) for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True))

    view = regroup()
    kept = draw(st.lists(st.booleans(), min_size=len(view), max_size=len(view)))
    sizes = tuple(n if keep else 1 for n, keep in zip(view, kept, strict=True))
    return sizes[draw(st.integers(0, len(sizes))) if not any(kept) else 0 :], view, regroup()


@settings(max_examples=300, deadline=None)
@given(views())
def test_a_summand_adds_the_same_numbers_in_any_view(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    sizes, view, target = case
    numbers = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    plan = plan_view(sizes, view, target)
    assert plan is not None
    moved = np.broadcast_to(numbers, plan[0]).reshape(plan[1])
    assert (np.broadcast_to(moved, target) == np.broadcast_to(numbers, view).reshape(target)).all()


@pytest.mark.parametrize("is_constant", [False, True])
@pytest.mark.parametrize("perm", [None, (0, 2, 1)])
def test_a_summand_moves_alike_computed_and_constant(perm: tuple[int, ...] | None, is_constant: bool) -> None:
    lead, tokens_ = (2, 3, 4), (5, 6)
    numbers = np.random.default_rng(0).standard_normal((1, 3, 1, 5, 1)).astype(np.float32)
    value = ir.Value(
        name="x", shape=ir.Shape(numbers.shape), type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(numbers) if is_constant else None,
    )  # fmt: skip
    tape = ir.tape.Tape()
    form = AttentionForm(6, 4) if perm is None else AttentionForm(8, 3, perm)
    moved = FormWriter(tape, form, "site").bring_summand(value, (*lead, *tokens_), lead, tokens_, "bias")
    assert moved is not None
    whole = np.broadcast_to(numbers, (*lead, *tokens_)).transpose(*(perm or (0, 1, 2)), 3, 4)
    reference = whole.reshape(*form.sizes, *tokens_)
    if is_constant:
        assert list(tape.nodes) == []
        result = array(moved)
    else:
        moved.name = "y"
        for number, node in enumerate(tape.nodes):
            node.name = f"n{number}"
            node.outputs[0].name = node.outputs[0].name or f"v{number}"
        graph = ir.Graph([value], [moved], name="g", nodes=list(tape.nodes), initializers=list(tape.initializers),
                         opset_imports={"": 20})  # fmt: skip
        result = run(Graph(ir.Model(graph, ir_version=10)), numbers)["y"]
    assert (np.broadcast_to(result, reference.shape) == reference).all()


@pytest.mark.parametrize(("batch", "is_raised"), [(1, True), (2, False)])
def test_v_may_have_an_axis_of_size_one_that_the_map_has_not(batch: int, *, is_raised: bool) -> None:
    """The exporter's optimizer removes the Reshape between bmm over heads and v in four axes, at batch 1."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk")}
    weights["wv"] = rng.standard_normal((8, batch * 8)).astype(np.float32)
    shapes = {"split": np.array([5, 2, 4]), "four": np.array([5, batch, 2, 4])}
    graph = parsed(
        """<ir_version: 10, opset_import: ["" : 23]> vit (float[5,8] x) => (float y) {
            a = MatMul(x, wq) b = Reshape(a, split) q = Transpose<perm = [1, 0, 2]>(b)
            c = MatMul(x, wk) d = Reshape(c, split) k = Transpose<perm = [1, 2, 0]>(d)
            e = MatMul(x, wv) f = Reshape(e, four) v = Transpose<perm = [1, 2, 0, 3]>(f)
            s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v)
        }""",
        **weights,
        **shapes,
    )
    image = rng.standard_normal((5, 8)).astype(np.float32)
    reference = run(graph, image)
    graph.infer_shapes()
    result = RaiseAttention().apply(graph)
    assert types(graph).count("Attention") == int(is_raised)
    assert list(result.refused.values()) == ([] if is_raised else ["q, k and v do not have the same batch and heads"])
    assert np.allclose(run(graph, image)["y"], reference["y"], atol=1e-5)
