"""Every way to write an attention becomes one node with the same numbers, or is refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.conftest import EXPORTS
from tests.graphs import (
    HEADS,
    SIZE,
    TOKENS,
    WIDTH,
    Site,
    differs,
    dynamo,
    expected,
    images,
    legacy,
    raised,
    redrawn,
    tokens,
    types,
)
from vitdeploy.graph.model import Graph, array

S = 1 / math.sqrt(SIZE)
DRAW = torch.Generator().manual_seed(1)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW)


VALUES = drawn(1, HEADS, TOKENS, SIZE)
FULL, PER_HEAD, ROW, COLUMN = drawn(1, 1, TOKENS, TOKENS), drawn(HEADS, TOKENS, TOKENS), drawn(TOKENS), drawn(TOKENS, 1)


def after(logits: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return logits.softmax(-1) @ v


def product(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-2, -1)


def key_mask(x: torch.Tensor) -> torch.Tensor:
    """A mask that depends on the input: (batch, 1, 1, tokens)."""
    return -3 * torch.relu(x.mean(-1))[:, None, None, :]


RAISED = {
    "mul after": (lambda q, k, v, x: after(product(q, k) * S, v), S),
    "mul from the left": (lambda q, k, v, x: after(S * product(q, k), v), S),
    "div after": (lambda q, k, v, x: after(product(q, k) / 4.0, v), 0.25),
    "scale on q": (lambda q, k, v, x: after(product(q * 0.3, k), v), 0.3),
    "scale on k": (lambda q, k, v, x: after(product(q, k / 3.0), v), 1 / 3),
    "scale on both": (lambda q, k, v, x: after(product(q * 0.5, k * 0.25), v), 0.125),
    "scale on the transposed k": (lambda q, k, v, x: after(q @ (k.transpose(-2, -1) * 0.3), v), 0.3),
    "no scale": (lambda q, k, v, x: after(product(q, k), v), 1.0),
    "constant mask": (lambda q, k, v, x: after(product(q, k) * S + FULL, v), S),
    "constant mask first": (lambda q, k, v, x: after(FULL + product(q, k) * S, v), S),
    "bias for each head": (lambda q, k, v, x: after(product(q, k) * S + PER_HEAD, v), S),
    "bias of rank 1": (lambda q, k, v, x: after(product(q, k) * S + ROW, v), S),
    "computed mask over keys": (lambda q, k, v, x: after(product(q, k) * S + key_mask(x), v), S),
    "computed mask, a product": (lambda q, k, v, x: after(product(q, k) * S + (1 - x.mean()) * FULL, v), S),
    "computed bias of rank 1": (lambda q, k, v, x: after(product(q, k) * S + x.sum((0, 2)), v), S),
    "one number for all keys": (lambda q, k, v, x: after(product(q, k) + COLUMN, v), 1.0),
    "factor below a bias": (lambda q, k, v, x: after((product(q, k) + FULL) * 0.3, v), 0.3),
    "divisor below a bias": (lambda q, k, v, x: after((product(q * 0.5, k) + PER_HEAD) / 2.0, v), 0.25),
    "factor below a computed bias": (lambda q, k, v, x: after((product(q, k) + key_mask(x)) * 0.3, v), 0.3),
    "computed mask over keys, sdpa": (
        lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=key_mask(x)),
        S,
    ),
    "boolean mask, sdpa": (
        lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=FULL[0, 0] > -1),
        S,
    ),
    "masked_fill": (lambda q, k, v, x: after((product(q, k) * S).masked_fill(FULL > 0, -9e15), v), S),
    "masked_fill below a factor": (lambda q, k, v, x: after(product(q, k).masked_fill(FULL > 0, -9e15) * S, v), S),
    "masked_fill with the largest number that masks, below a factor": (
        lambda q, k, v, x: after(product(q, k).masked_fill(FULL > 0, -1e4) * S, v),
        S,
    ),
    "masked_fill with the largest number that masks": (
        lambda q, k, v, x: after((product(q, k) * S).masked_fill(FULL > 0, -1e4), v),
        S,
    ),
    "two biases": (lambda q, k, v, x: after(product(q, k) + FULL + key_mask(x), v), 1.0),
    "two constant biases, one scaled": (
        lambda q, k, v, x: after((product(q, k) + FULL) * 0.5 + PER_HEAD, v),
        0.5,
    ),
    "a factor for each head": (lambda q, k, v, x: after(product(q, k) * PER_HEAD[:, :1, :1], v), 1.0),
    "a factor for each head below a bias": (
        lambda q, k, v, x: after(product(q, k) * PER_HEAD[:, :1, :1] + FULL, v),
        1.0,
    ),
}


def einsum(scores: str, values: str, *, tokens_first: bool = False) -> Any:
    """Both products as torch.einsum; q, k and v as (batch, heads, tokens, size) or with the tokens first."""

    def core(q: Any, k: Any, v: Any, x: Any) -> Any:
        q, k, v = (t.transpose(1, 2) if tokens_first else t for t in (q, k, v))
        result = torch.einsum(values, (torch.einsum(scores, q, k) * S).softmax(-1), v)
        return result.transpose(1, 2) if tokens_first else result

    return core


RAISED |= {
    "einsum": (einsum("bhid,bhjd->bhij", "bhij,bhjd->bhid"), S),
    "einsum, tokens first": (einsum("bihd,bjhd->bhij", "bhij,bjhd->bihd", tokens_first=True), S),
    "the map as second factor": (
        lambda q, k, v, x: (v.transpose(-2, -1) @ (product(q, k) * S).softmax(-1).transpose(-2, -1)).transpose(-2, -1),
        S,
    ),
    "the scores transposed": (
        lambda q, k, v, x: (product(k, q) * S).softmax(-2).transpose(-2, -1) @ v,
        S,
    ),
    "all transposed": (
        lambda q, k, v, x: (v.transpose(-2, -1) @ (product(k, q) * S).softmax(-2)).transpose(-2, -1),
        S,
    ),
    "the scores transposed below a bias": (
        lambda q, k, v, x: (product(k, q) * S + PER_HEAD).transpose(-2, -1).softmax(-1) @ v,
        S,
    ),
    "shared keys": (lambda q, k, v, x: after(product(q, k[:, :1]) * S, v), S),
    "shared keys and values": (lambda q, k, v, x: after(product(q, k[:, :1]) * S, v[:, :1]), S),
    "shared queries": (lambda q, k, v, x: after(product(q[:, :1].expand(-1, HEADS, -1, -1), k) * S, v), S),
    "learned values": (lambda q, k, v, x: after(product(q, k) * S, VALUES) + 0 * v.mean(), S),
    "a bias taken away": (lambda q, k, v, x: after(product(q, k) * S - FULL, v), S),
    "the maximum taken away": (
        lambda q, k, v, x: after((s := product(q, k) * S) - s.amax(-1, keepdim=True), v),
        S,
    ),
}
RAISED |= {
    "the maximum taken away, transposed": (
        lambda q, k, v, x: ((s := product(k, q) * S) - s.amax(-2, keepdim=True)).softmax(-2).transpose(-2, -1) @ v,
        S,
    ),
    "the maximum over queries taken away": (
        lambda q, k, v, x: after((s := product(q, k) * S) - s.amax(-2, keepdim=True), v),
        S,
    ),
    "the maximum over queries taken away, transposed": (
        lambda q, k, v, x: ((s := product(k, q) * S) - s.amax(-1, keepdim=True)).softmax(-2).transpose(-2, -1) @ v,
        S,
    ),
    "the maximum over queries taken away below a transpose": (
        lambda q, k, v, x: after(((s := product(k, q) * S) - s.amax(-1, keepdim=True)).transpose(-2, -1), v),
        S,
    ),
    "the maximum over some keys taken away": (
        lambda q, k, v, x: after(
            ((s := (product(q, k) * S).unflatten(-1, (-1, 1))) - s.amax(-1, keepdim=True)).flatten(-2), v
        ),
        S,
    ),
}
BY_DYNAMO = [
    "einsum",
    "einsum, tokens first",
    "the maximum taken away",
    "div after",
    "scale on both",
    "computed mask over keys",
    "factor below a bias",
    "computed mask over keys, sdpa",
    "boolean mask, sdpa",
]


def with_map(q: Any, k: Any, v: Any, x: Any) -> Any:
    attention = (product(q, k) * S).softmax(-1)
    return attention @ v, attention


LEFT, RIGHT = (torch.arange(TOKENS) // 9 == half for half in (0, 1))
THIRD = torch.arange(TOKENS)[:, None] == 3
LOW_LEFT, LOW_RIGHT = (torch.zeros(TOKENS, TOKENS).masked_fill(THIRD & half, -torch.inf) for half in (LEFT, RIGHT))


def without_nan(logits: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(-1)
    return torch.where(p.isnan(), torch.zeros(()), p) @ v


def filled_apart(logits: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Scores that are filled in a view with one more axis."""
    return logits.unflatten(-1, (TOKENS, 1)).masked_fill(condition[..., None], -1e9).flatten(-2)


RAISED |= {
    "two fills that leave a key": (
        lambda q, k, v, x: after(product(q, k).masked_fill(THIRD & LEFT, -1e9).masked_fill(~THIRD & RIGHT, -1e9), v),
        1.0,
    ),
    "two fills that leave a key, transposed": (
        lambda q, k, v, x: (
            (
                product(k, q).masked_fill((THIRD & LEFT).T, -1e9).masked_fill((~THIRD & RIGHT).T, -1e9).softmax(-2)
            ).transpose(-2, -1)
            @ v
        ),
        1.0,
    ),
    "two fills in a view of the scores": (
        lambda q, k, v, x: after(filled_apart(filled_apart(product(q, k), THIRD & LEFT), ~THIRD & RIGHT), v),
        1.0,
    ),
    "a fill beside minus infinity": (
        lambda q, k, v, x: after((product(q, k) + LOW_LEFT).masked_fill(~THIRD & RIGHT, -1e9), v),
        1.0,
    ),
    "a fill beside a row of low numbers": (
        lambda q, k, v, x: after((product(q, k) - 1e5 * THIRD).masked_fill(~THIRD & RIGHT, -1e9), v),
        1.0,
    ),
    "a check for NaN beside a row of low numbers": (
        lambda q, k, v, x: without_nan(product(q, k) - 1e5 * THIRD, v),
        1.0,
    ),
}
REFUSED = {
    "returns its map": (with_map, "attention map is read by something else"),
    "clamped scores": (lambda q, k, v, x: after(product(q, k).clamp(-2, 2), v), "Clip stands between"),
    "masked_fill, computed": (
        lambda q, k, v, x: after((product(q, k) * S).masked_fill(key_mask(x) < -0.1, -1e9), v),
        "may all be masked",
    ),
    "masked_fill of whole rows": (
        lambda q, k, v, x: after(product(q, k).masked_fill(COLUMN > 0, torch.finfo(torch.float32).min), v),
        "may all be masked",
    ),
    "two fills that together mask a row": (
        lambda q, k, v, x: after(product(q, k).masked_fill(THIRD & LEFT, -1e4).masked_fill(THIRD & RIGHT, -1e4), v),
        "may all be masked",
    ),
    "two fills that together mask a row, transposed": (
        lambda q, k, v, x: (
            (
                product(k, q).masked_fill((THIRD & LEFT).T, -1e9).masked_fill((THIRD & RIGHT).T, -1e9).softmax(-2)
            ).transpose(-2, -1)
            @ v
        ),
        "may all be masked",
    ),
    "two fills in a view that together mask a row": (
        lambda q, k, v, x: after(filled_apart(filled_apart(product(q, k), THIRD & LEFT), THIRD & RIGHT), v),
        "may all be masked",
    ),
    "a fill of the keys that minus infinity leaves": (
        lambda q, k, v, x: after((product(q, k) + LOW_LEFT).masked_fill(THIRD & RIGHT, -1e4), v),
        "may all be masked",
    ),
    "a fill of the keys that a low number leaves": (
        lambda q, k, v, x: after((product(q, k) + LOW_LEFT.clamp(min=-1e9)).masked_fill(THIRD & RIGHT, -1e9), v),
        "may all be masked",
    ),
    "two biases that together give NaN": (
        lambda q, k, v, x: without_nan(product(q, k) + LOW_LEFT + LOW_RIGHT, v),
        "keys are all masked",
    ),
    "filled with an ordinary number": (
        lambda q, k, v, x: after(product(q, k).masked_fill(FULL > 0, -9.0), v),
        "Where stands between",
    ),
    "filled with a number whose exponential is not 0": (
        lambda q, k, v, x: after(product(q, k).masked_fill(FULL > 0, -50.0), v),
        "Where stands between",
    ),
    "filled with a number that a later factor shrinks": (
        lambda q, k, v, x: after(product(q, k).masked_fill(FULL > 0, -1e4) * 1e-3, v),
        "changes its low number",
    ),
    "boolean mask, computed": (
        lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=key_mask(x) > -0.1),
        "keys are all masked",
    ),
    "boolean mask of whole rows": (
        lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=FULL[0, 0] > 9),
        "keys are all masked",
    ),
    "two products": (lambda q, k, v, x: after(product(q, k) + product(k, q), v), "sum of several products"),
    "softmax over queries": (lambda q, k, v, x: product(q, k).softmax(2) @ v, "over axis 2"),
    "softmax over queries, transposed": (
        lambda q, k, v, x: (v.transpose(-2, -1) @ product(q, k).softmax(-1)).transpose(-2, -1),
        "not over the keys",
    ),
    "softmax over heads": (lambda q, k, v, x: product(q, k).softmax(1) @ v, "over axis 1"),
    "a factor for each head above a bias": (
        lambda q, k, v, x: after((product(q, k) + FULL) * PER_HEAD[:, :1, :1], v),
        "Mul stands between",
    ),
    "a negative scale": (lambda q, k, v, x: after(product(q, k) * -0.3, v), "scale is negative"),
}


def site(core: Callable[..., Any], **options: Any) -> torch.nn.Module:
    return redrawn(Site(core, **options))


@pytest.mark.parametrize("name", RAISED)
def test_raises_hand_written_attention(name: str) -> None:
    core, scale = RAISED[name]
    check_raised(site(core), legacy(site(core), tokens()), scale)


@pytest.mark.parametrize("name", BY_DYNAMO)
@pytest.mark.parametrize("opset", [20, 23])
def test_raises_hand_written_attention_from_dynamo(name: str, opset: int) -> None:
    core, scale = RAISED[name]
    check_raised(site(core), dynamo(site(core), tokens(), opset=opset), scale)


def check_raised(module: torch.nn.Module, model: bytes, scale: float) -> None:
    graph, structure, refused = raised(model)
    assert refused == {}
    assert (types(graph).count("Attention"), types(graph).count("Softmax")) == (1, 0)
    (core,) = (node for node in graph.nodes if node.op_type == "Attention")
    assert core.attributes.get_float("scale", 0) == pytest.approx(scale)
    (attention_site,) = structure.attention
    assert (attention_site.heads, attention_site.head_size, attention_site.tokens) == (HEADS, SIZE, TOKENS)
    assert differs(graph, tokens(), expected(module, tokens())) is None


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_reason_and_counts_the_site(name: str) -> None:
    core, reason = REFUSED[name]
    module = site(core)
    graph, structure, refused = raised(legacy(module, tokens()))
    assert "Attention" not in types(graph)
    assert [reason in text for text in refused.values()] == [True], refused
    assert [s.refused for s in structure.attention] == list(refused.values())
    assert [linear.role for linear in structure.linears] == ["qkv", "qkv", "qkv", "proj"]
    assert differs(graph, tokens(), expected(module, tokens())) is None


SUM_OF_THREE = "bhij,bhjd,bhid->bhid"


def test_mentions_an_attention_whose_product_is_no_matmul() -> None:
    module = site(lambda q, k, v, x: torch.einsum(SUM_OF_THREE, product(q, k).softmax(-1), v, q))
    _, structure, refused = raised(legacy(module, tokens()))
    assert list(refused.values()) == ["the product of the attention map with v is no MatMul"]
    assert [s.refused for s in structure.attention] == list(refused.values())


IDLE = {
    "all true": torch.ones(TOKENS, TOKENS, dtype=torch.bool),
    "all true, one row": torch.ones(1, TOKENS, dtype=torch.bool),
    "all zero": torch.zeros(1, 1, TOKENS, TOKENS),
}


@pytest.mark.parametrize("mask", IDLE)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_mask_that_lets_every_key_pass_goes(mask: str, dynamic: bool) -> None:
    module = site(
        lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=IDLE[mask].expand(x.shape[0], 1, -1, -1)
        )
    )
    graph, _, _ = raised(dynamo(module, tokens(2), dynamic=dynamic))
    assert mask_of(graph) is None
    assert differs(graph, tokens(2), expected(module, tokens(2))) is None


def test_an_added_zero_goes() -> None:
    module = site(lambda q, k, v, x: after(product(q, k) * S + torch.zeros(1, 1, TOKENS, TOKENS), v))
    graph, _, _ = raised(legacy(module, tokens()))
    assert mask_of(graph) is None
    assert differs(graph, tokens(), expected(module, tokens())) is None


def test_a_constant_boolean_mask_becomes_numbers_to_add() -> None:
    module = site(
        lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=FULL[0, 0] > -1)
    )
    graph, _, _ = raised(dynamo(module, tokens()))
    numbers = array(mask_of(graph))
    assert (numbers.dtype, set(numbers.reshape(-1).tolist())) == (np.float32, {0.0, -65504.0})
    assert differs(graph, tokens(), expected(module, tokens())) is None


@pytest.mark.parametrize(
    ("mask", "stays"),
    [
        ("float[B,1,5,7] m", True),  # fed: what it holds is not known
        ("true4", True),  # four masks for a batch that varies repeat the scores
        ("none_row", True),  # a query without keys: what becomes of it is the operator's own matter
        ("true1", False),
    ],
)
def test_a_mask_that_does_more_stays(mask: str, stays: bool) -> None:
    fed, name = (f", {mask}", "m") if " " in mask else ("", mask)
    some = np.arange(35).reshape(1, 1, 5, 7) >= 7
    masks = {"true1": np.ones((1, 1, 5, 7), bool), "true4": np.ones((4, 1, 5, 7), bool), "none_row": some}
    graph, _, _ = raised(
        '<ir_version: 11, opset_import: ["" : 23]> vit (float[B,2,5,4] q, float[B,2,7,4] k, float[B,2,7,4] v'
        f"{fed}) => (float y) {{ y = Attention(q, k, v, {name}) }}",
        **masks,
    )
    assert (mask_of(graph) is not None) == stays
    if name == "none_row":
        assert array(mask_of(graph)).dtype == np.bool_


def mask_of(graph: Graph) -> ir.Value | None:
    """The mask of the only attention in the graph."""
    (core,) = (node for node in graph.nodes if node.op_type == "Attention")
    return core.inputs[3] if len(core.inputs) > 3 else None


class NoAttention(torch.nn.Module):
    """A classification head, and softmax weights that mix constants."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.mix, self.table = torch.nn.Linear(WIDTH, 10), torch.nn.Linear(WIDTH, 4), drawn(4, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(x).softmax(-1) @ self.table).softmax(-1)


def test_does_not_mention_a_softmax_that_is_no_attention() -> None:
    graph, structure, refused = raised(legacy(NoAttention().eval(), tokens()))
    assert types(graph).count("Softmax") == 2
    assert (structure.attention, refused) == ((), {})


@pytest.mark.parametrize("kind", EXPORTS)
def test_raises_every_exporters_vit(kind: str, vit: torch.nn.Module, exported: Callable[[str], bytes]) -> None:
    graph, structure, refused = raised(exported(kind))
    assert (types(graph).count("Attention"), types(graph).count("Softmax"), refused) == (2, 0, {})
    assert [(s.heads, s.head_size, s.tokens) for s in structure.attention] == [(HEADS, SIZE, TOKENS)] * 2
    for batch in (1, 2, 3) if kind.endswith("batch") else (1,):
        assert differs(graph, images(batch), expected(vit, images(batch))) is None


def test_the_maximum_is_not_computed() -> None:
    """It needs a second product of q and k, and does not change the softmax."""
    graph, _, _ = raised(legacy(site(RAISED["the maximum taken away"][0]), tokens()))
    assert mask_of(graph) is None
    assert not {"ReduceMax", "Sub", "Expand"} & set(types(graph))


def test_the_keys_of_an_einsum_are_not_transposed_twice() -> None:
    graph, _, _ = raised(legacy(site(RAISED["einsum, tokens first"][0]), tokens()))
    assert [node.name for node in graph.nodes if (node.name or "").endswith("/transpose_k")] == []


def test_the_dynamo_exporters_batched_transpose_goes(exported: Callable[[str], bytes]) -> None:
    """Reshape, Transpose, Reshape and the final Transpose would cancel out, so none of them is left."""
    graph, _, _ = raised(exported("dynamo-20"))
    assert [node.name for node in graph.nodes if (node.name or "").endswith("/transpose_k")] == []


@pytest.mark.parametrize("number", [0, 1])
def test_parity_notices_one_broken_site(number: int, vit: torch.nn.Module, exported: Callable[[str], bytes]) -> None:
    """All these tests rest on this: a model in which one attention gives zeros fails the check."""
    graph, _, _ = raised(exported("dynamo"))
    core = [node for node in graph.nodes if node.op_type == "Attention"][number]
    core.attributes["scale"] = ir.AttrFloat32("scale", core.attributes.get_float("scale", 0.0) * 1.1)
    assert differs(graph, images(), expected(vit, images())) is not None

    tape, old = ir.tape.Tape(), core.outputs[0]
    uses = list(old.uses())
    zero = tape.initializer(ir.tensor(np.zeros((), np.float32), name="zero"))
    graph.model.graph.register_initializer(zero)
    zeroed = tape.op("Mul", [old, zero], name="zeroed")
    graph.model.graph.insert_after(core, tape.nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, zeroed)
    assert differs(graph, images(), expected(vit, images())) is not None


class TwoInOne(torch.nn.Module):
    """Two attentions in one module that share its scope."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.reshape(-1, TOKENS, HEADS, SIZE).transpose(1, 2)
        return after(product(q + 1, after(product(q, q) * S, q)) * S, q)


def test_two_sites_in_one_module_have_two_names() -> None:
    graph, structure, _ = raised(legacy(TwoInOne(), tokens()))
    assert [s.name for s in structure.attention] == ["attention", "attention.1"]
    assert differs(graph, tokens(), expected(TwoInOne(), tokens())) is None
