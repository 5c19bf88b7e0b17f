"""Attention whose scores are not (batch, heads, tokens, tokens) becomes the same node, with the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.graphs import differs, dynamo, expected, legacy, raised, redrawn, run, types
from vitdeploy.graph.model import Graph, array, dims
from vitdeploy.passes._attention_form import Form, FormWriter, pair_groups, plan_view

WIDTH, HEADS, SIZE, TOKENS, SIDE = 48, 3, 16, 16, 4
S = SIZE**-0.5
Tensor = torch.Tensor


class Block(nn.Module):
    """q, k and v of `Site`s, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.rows, self.columns = (nn.Parameter(torch.randn(SIDE, SIDE, SIZE)) for _ in range(2))
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.tokens_first = nn.MultiheadAttention(WIDTH, HEADS)

    def heads(self, x: Tensor) -> Tensor:
        """(batch, heads, tokens, size)."""
        return x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

    def merged(self, x: Tensor) -> Tensor:
        """(batch · heads, tokens, size), as CLIP, DETR and SAM split it."""
        return self.heads(x).reshape(x.shape[0] * HEADS, -1, SIZE)

    def unmerged(self, y: Tensor, batch: int) -> Tensor:
        return self.o(y.view(batch, HEADS, -1, SIZE).transpose(1, 2).flatten(2))

    def positions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's decomposed relative positions for the rows and columns of keys."""
        grid = q.unflatten(-2, (SIDE, SIDE))
        high = torch.einsum("...yxc,ykc->...yxk", grid, self.rows)
        return high, torch.einsum("...yxc,xkc->...yxk", grid, self.columns)


def torch_default(m: Block, x: Tensor) -> Tensor:
    return m.mha(x, x, x)[0]


def torch_tokens_first(m: Block, x: Tensor) -> Tensor:
    t = x.transpose(0, 1)
    return m.tokens_first(t, t, t)[0].transpose(0, 1)


def torch_pooling(m: Block, x: Tensor) -> Tensor:
    """SigLIP's head: one learned query for each image."""
    return m.mha(m.query.repeat(x.shape[0], 1, 1), x, x)[0]


def bmm(m: Block, x: Tensor) -> Tensor:
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    return m.unmerged(torch.bmm(torch.bmm(q * S, k.transpose(1, 2)).softmax(-1), v), x.shape[0])


def bmm_mask(m: Block, x: Tensor) -> Tensor:
    """CLIP of transformers up to 4.4x adds its mask in a view with heads."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    scores = torch.bmm(q * S, k.transpose(1, 2)).view(x.shape[0], HEADS, TOKENS, TOKENS) + MASK
    return m.unmerged(torch.bmm(scores.view(x.shape[0] * HEADS, TOKENS, TOKENS).softmax(-1), v), x.shape[0])


def bmm_mask_of_image(m: Block, x: Tensor) -> Tensor:
    """The same with a mask that depends on the image: (batch, 1, 1, keys). The softmax has the heads."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    scores = (
        torch.bmm(q * S, k.transpose(1, 2)).view(x.shape[0], HEADS, TOKENS, TOKENS) - x.mean(-1)[:, None, None].relu()
    )
    return m.unmerged(torch.bmm(scores.softmax(-1).view(x.shape[0] * HEADS, TOKENS, TOKENS), v), x.shape[0])


def one_head(m: Block, x: Tensor) -> Tensor:
    return m.o((m.q(x) @ m.k(x).transpose(-2, -1) * WIDTH**-0.5).softmax(-1) @ m.v(x))


def one_head_sdpa(m: Block, x: Tensor) -> Tensor:
    return m.o(nn.functional.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))


def hiera(m: Block, x: Tensor) -> Tensor:
    """(batch, heads, windows, tokens, size)."""
    q, k, v = m.qkv(x).reshape(x.shape[0], -1, 4, 3, HEADS, SIZE).permute(3, 0, 4, 2, 1, 5).unbind(0)
    y = (q @ k.transpose(-2, -1) * S).softmax(-1) @ v
    return m.o(y.permute(0, 3, 2, 1, 4).flatten(1, 2).flatten(2))


def nest(m: Block, x: Tensor) -> Tensor:
    """(batch, windows, heads, tokens, size), with a bias for each window."""
    q, k, v = m.qkv(x).reshape(x.shape[0], 4, -1, 3, HEADS, SIZE).permute(3, 0, 1, 4, 2, 5).unbind(0)
    y = (q @ k.transpose(-2, -1) * S + WINDOWS).softmax(-1) @ v
    return m.o(y.transpose(2, 3).flatten(1, 2).flatten(2))


def hiera_bias(m: Block, x: Tensor) -> Tensor:
    """The same axes as Hiera's, with a bias for each head."""
    q, k, v = m.qkv(x).reshape(x.shape[0], -1, 4, 3, HEADS, SIZE).permute(3, 0, 4, 2, 1, 5).unbind(0)
    y = (q @ k.transpose(-2, -1) * S + MASK[:, :, None, :4, :4]).softmax(-1) @ v
    return m.o(y.permute(0, 3, 2, 1, 4).flatten(1, 2).flatten(2))


def three_leading(m: Block, x: Tensor) -> Tensor:
    """(batch, rows, columns, heads, tokens, size)."""
    q, k, v = m.qkv(x).reshape(x.shape[0], 2, 2, 4, 3, HEADS, SIZE).permute(4, 0, 1, 2, 5, 3, 6).unbind(0)
    return m.o(((q @ k.transpose(-2, -1) * S).softmax(-1) @ v).transpose(3, 4).flatten(1, 3).flatten(2))


def decomposed(m: Block, x: Tensor) -> Tensor:
    """MViTv2: height and width terms added to (batch, heads, rows, columns, rows, columns)."""
    q, k, v = (m.heads(f(x)) for f in (m.q, m.k, m.v))
    high, wide = m.positions(q)
    scores = ((q * S) @ k.transpose(-2, -1)).view(x.shape[0], HEADS, SIDE, SIDE, SIDE, SIDE)
    scores = scores + high[..., None] + wide[..., None, :]
    return m.unmerged(scores.view(x.shape[0], HEADS, TOKENS, TOKENS).softmax(-1) @ v, x.shape[0])


def segment_anything(m: Block, x: Tensor) -> Tensor:
    """The same in (batch · heads, rows, columns, rows, columns)."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    high, wide = m.positions(q)
    scores = ((q * S) @ k.transpose(-2, -1)).view(q.shape[0], SIDE, SIDE, SIDE, SIDE)
    scores = (scores + high[..., None] + wide[..., None, :]).view(q.shape[0], TOKENS, TOKENS)
    return m.unmerged(scores.softmax(-1) @ v, x.shape[0])


def channels_first(m: Block, x: Tensor) -> Tensor:
    """YOLO11: (batch, heads, size, tokens), and v by the transposed map."""
    q, k, v = m.qkv(x).transpose(1, 2).view(x.shape[0], HEADS, 3 * SIZE, TOKENS).split([SIZE] * 3, dim=2)
    y = v @ (q.transpose(-2, -1) @ k * S).softmax(-1).transpose(-2, -1)
    return m.o(y.reshape(x.shape[0], WIDTH, TOKENS).transpose(1, 2))


MASK = torch.randn(1, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
WINDOWS = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
FORMS: dict[Callable[[Block, Tensor], Tensor], tuple[int, int]] = {
    torch_default: (HEADS, TOKENS),
    torch_tokens_first: (HEADS, TOKENS),
    torch_pooling: (HEADS, 1),
    bmm: (HEADS, TOKENS),
    bmm_mask: (HEADS, TOKENS),
    bmm_mask_of_image: (HEADS, TOKENS),
    one_head: (1, TOKENS),
    one_head_sdpa: (1, TOKENS),
    hiera: (HEADS, 4),
    hiera_bias: (HEADS, 4),
    nest: (HEADS, 4),
    three_leading: (HEADS, 4),
    decomposed: (HEADS, TOKENS),
    segment_anything: (HEADS, TOKENS),
    channels_first: (HEADS, TOKENS),
}
"""Heads and queries of the canonical attention of each."""


class Wrapped(Block):
    def __init__(self, form: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def tokens(batch: int) -> Any:
    return np.random.default_rng(0).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)


def check(model: bytes, module: nn.Module, form: Callable[[Block, Tensor], Tensor], batches: tuple[int, ...]) -> Graph:
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
def test_raises_any_rank(form: Callable[[Block, Tensor], Tensor], batch: int) -> None:
    module = redrawn(Wrapped(form))
    check(legacy(module, tokens(batch)), module, form, (batch,))


LEGACY_LOSES_ITS_SIZES = torch_pooling
"""The legacy exporter slices the weights of nn.MultiheadAttention by sizes of the repeated query, at run time."""


@pytest.mark.parametrize("form", [f for f in FORMS if f is not LEGACY_LOSES_ITS_SIZES], ids=lambda form: form.__name__)
def test_raises_any_rank_with_a_batch_that_varies(form: Callable[[Block, Tensor], Tensor]) -> None:
    module = redrawn(Wrapped(form))
    check(legacy(module, tokens(2), dynamic=True), module, form, (1, 3))


BY_DYNAMO = [f for f in FORMS if f is not one_head_sdpa]
"""The exporter itself asserts that scaled_dot_product_attention has four axes: see `vitdeploy.onnx_export`."""


@pytest.mark.parametrize("form", BY_DYNAMO, ids=lambda form: form.__name__)
@pytest.mark.parametrize("dynamic", [False, True])
def test_raises_any_rank_from_dynamo(form: Callable[[Block, Tensor], Tensor], dynamic: bool) -> None:
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
    form = Form(6, 4) if perm is None else Form(8, 3, perm)
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
