"""Both lowerings of `Attention`: the same numbers, with and without a mask, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, differs, expected, images, parsed, raised, run, types
from vitdeploy.passes import Pass
from vitdeploy.passes.lower_multihead import LowerMultihead
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.quantize import half

B, H, N, M, D = 2, 3, 5, 7, 4  # batch, heads, queries, keys, head size

LOWERINGS = [LowerPrimitives(), LowerMultihead()]
PRIMITIVES = ["Mul", "Transpose", "MatMul", "Softmax", "MatMul"]


def attention(
    mask: str | None = None,
    batch: str = str(B),
    options: str = "scale = 0.3",
    tail: str = "",
    kv_heads: int = H,
    e: int = D,
) -> str:
    """A model with one Attention on 4-D operands, and its mask as a fourth input."""
    inputs = f"float[{batch},{H},{N},{D}] q, float[{batch},{kv_heads},{M},{D}] k, float[{batch},{kv_heads},{M},{e}] v"
    y = f"o = Attention<{options}>(q, k, v{', mask' if mask else ''}) {tail or 'y = Identity(o)'}"
    return (
        f'<ir_version: 11, opset_import: ["" : 23]> vit ({inputs}{f", {mask} mask" if mask else ""})'
        f" => (float y) {{ {y} }}"
    )


def feeds(batch: int = B, e: int = D, **mask: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"q": (batch, H, N, D), "k": (batch, H, M, D), "v": (batch, H, M, e)}
    return {name: 2 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | mask


def softmax_of_scores(q: Any, k: Any, v: Any, mask: Any = None, scale: float = 0.3) -> Any:
    """Attention in float64, from its definition."""
    scores = q.astype(np.float64) @ k.swapaxes(-2, -1) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.fixture(params=LOWERINGS, ids=lambda p: p.name)
def lowering(request: pytest.FixtureRequest) -> Iterator[Pass]:
    return request.param


def draw(*shape: int) -> Any:
    return 3 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)


MASKS = {
    "none": (None, {}),
    "float 4-D": (f"float[{B},{H},{N},{M}]", {"mask": draw(B, H, N, M)}),
    "float for all heads": (f"float[{B},1,{N},{M}]", {"mask": draw(B, 1, N, M)}),
    "float 3-D": (f"float[{H},{N},{M}]", {"mask": draw(H, N, M)}),
    "float 2-D": (f"float[{N},{M}]", {"mask": draw(N, M)}),
    "bool": (f"bool[{B},1,{N},{M}]", {"mask": (draw(B, 1, N, M) > 0) | (np.arange(M) == 0)}),
}


@pytest.mark.parametrize("mask", MASKS)
def test_lowers_with_the_same_numbers(lowering: Pass, mask: str) -> None:
    declared, fed = MASKS[mask]
    graph = parsed(attention(declared))
    result = apply(lowering, graph)
    if mask == "bool" and isinstance(lowering, LowerMultihead):
        assert result.refused == {"Attention.0": "its mask is boolean or of unknown shape"}
        return
    assert (result.fired, result.refused) == (1, {})
    assert "Attention" not in types(graph)
    inputs = feeds(**fed)
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    assert np.abs(y - softmax_of_scores(**feeds(**fed))).max() < 1e-5


def test_another_head_size_of_v_is_for_primitives() -> None:
    graph = parsed(attention(e=6))
    assert list(apply(LowerMultihead(), graph).refused.values()) == ["v has another head size than q and k"]
    assert apply(LowerPrimitives(), graph).fired == 1
    inputs = feeds(e=6)
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    assert np.abs(y - softmax_of_scores(**feeds(e=6))).max() < 1e-5


def test_a_dynamic_batch_stays_dynamic(lowering: Pass) -> None:
    graph = parsed(attention(f"float[batch,1,{N},{M}]", batch="batch"))
    assert apply(lowering, graph).fired == 1
    for batch in (1, 3):
        fed = feeds(batch, mask=draw(batch, 1, N, M))
        inputs = dict(fed)
        (y,) = run(graph, inputs.pop("q"), **inputs).values()
        assert np.abs(y - softmax_of_scores(**fed)).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "kv_heads", "reason"),
    [
        ("scale = 0.3, is_causal = 1", H, "it uses is_causal"),
        ("scale = 0.3, softcap = 2.0", H, "it uses softcap"),
        ("scale = 0.3", 2, f"{H} heads of queries cannot share 2 of keys and 2 of values"),
        ("is_causal = 0", H, "its head size is not known"),
    ],
)
def test_refuses_what_is_more_than_attention(lowering: Pass, options: str, kv_heads: int, reason: str) -> None:
    graph = parsed(attention(options=options, kv_heads=kv_heads))
    result = apply(lowering, graph)
    assert (result.fired, list(result.refused.values())) == (0, [reason])
    assert types(graph) == ["Attention", "Identity"]


@pytest.mark.parametrize("mask", [np.zeros((1, 1, N, M), bool), np.full((N, M), -np.inf, np.float32)])
def test_refuses_a_mask_that_hides_all_keys_from_a_query(lowering: Pass, mask: Any) -> None:
    """ONNX Runtime's Attention gives numbers there, its plain operators give others or NaN."""
    mask[..., 1:, :] = mask.dtype == np.bool_
    graph = parsed(attention().replace("(q, k, v)", "(q, k, v, m)"), m=mask)
    reason = "its mask lets no key pass for some query, of which each operator makes something else"
    assert list(apply(lowering, graph).refused.values()) == [reason]
    assert types(graph) == ["Attention", "Identity"]


def test_refuses_an_attention_that_returns_its_scores(lowering: Pass) -> None:
    scores = attention(tail="y = Add(o, sum) ").replace("o = Attention", "o, pk, pv, s = Attention")
    graph = parsed(scores.replace("y = Add", "sum = ReduceSum<keepdims = 0>(s) y = Add"))
    assert list(apply(lowering, graph).refused.values()) == ["it caches keys or returns its scores"]


def test_primitives_scale_q_before_the_product() -> None:
    graph = parsed(attention())
    next(graph.nodes).name = "blocks.0.attn/Attention"
    apply(LowerPrimitives(), graph)
    assert types(graph) == [*PRIMITIVES, "Identity"]
    core = [f"blocks.0.attn/Attention/{part}" for part in ("scale_q", "transpose_k", "qk", "softmax", "pv")]
    assert [node.name for node in graph.nodes][:5] == core


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_primitives_scale_q_in_its_own_type(kind: ir.DataType) -> None:
    """Two types in one Mul are no valid graph, and TensorRT refuses it."""
    graph = parsed(attention())
    half.convert(graph, to=kind)
    apply(LowerPrimitives(), graph)
    scale = next(node for node in graph.nodes if (node.name or "").endswith("/scale_q"))
    assert [value.dtype for value in scale.inputs if value is not None] == [kind, kind]


def test_primitives_write_no_scale_of_one() -> None:
    graph = parsed(attention(options="scale = 1.0"))
    assert apply(LowerPrimitives(), graph).fired == 1
    assert types(graph) == [*PRIMITIVES[1:], "Identity"]
    inputs = feeds()
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    assert np.abs(y - softmax_of_scores(**feeds(), scale=1.0)).max() < 1e-5


def test_multihead_takes_the_transpose_and_the_reshape_along() -> None:
    merge = "t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape<allowzero = 0>(t, shape)"
    merged = parsed(attention(tail=merge), shape=np.array([B, N, H * D]))
    apply(LowerMultihead(), merged)
    assert types(merged) == ["Transpose", "Reshape", "MultiHeadAttention"]

    shared = parsed(
        attention(tail=merge.replace("y =", "u = ") + " y = Concat<axis = 1>(t2, t2)").replace(
            "t = Transpose", "t2 = Transpose<perm = [0, 2, 1, 3]>(o) t = Transpose"
        ),
        shape=np.array([B, N, H * D]),
    )
    apply(LowerMultihead(), shared)
    assert types(shared)[:5] == ["Transpose", "Reshape", "MultiHeadAttention", "Reshape", "Transpose"]
    for graph, pick in ((merged, lambda y: y), (shared, lambda y: y[:, :N].reshape(B, N, H * D))):
        inputs = feeds()
        (y,) = run(graph, inputs.pop("q"), **inputs).values()
        reference = softmax_of_scores(**feeds()).transpose(0, 2, 1, 3).reshape(B, N, H * D)
        assert np.abs(pick(y) - reference).max() < 1e-5


def test_multihead_keeps_an_axis_of_one_behind_the_merge_of_heads() -> None:
    tail = "t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape<allowzero = 0>(t, shape)"
    graph = parsed(attention(tail=tail), shape=np.array([B, N, 1, H * D]))
    apply(LowerMultihead(), graph)
    inputs = feeds()
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    reference = softmax_of_scores(**feeds()).transpose(0, 2, 1, 3).reshape(B, N, 1, H * D)
    assert y.shape == reference.shape
    assert np.abs(y - reference).max() < 1e-5


HEADS_FIRST = "{0}h = Reshape({0}x, heads) {0} = Transpose<perm = [0, 2, 1, 3]>({0}h) "


@pytest.mark.parametrize(
    ("channels_last", "operators"),
    [("qkv", []), ("q", []), ("kv", ["Transpose", "Reshape"]), ("", ["Transpose", "Reshape"])],
)
def test_multihead_reads_channels_last_where_it_can(channels_last: str, operators: list[str]) -> None:
    """Keys and values only together, because the operator takes both in the same form."""
    inputs = ", ".join(
        f"float[{B},{N},{H * D}] {n}x" if n in channels_last else f"float[{B},{H},{N},{D}] {n}" for n in "qkv"
    )
    before = "".join(HEADS_FIRST.format(n) for n in channels_last)
    text = (
        f'<ir_version: 11, opset_import: ["" : 23]> vit ({inputs}) => (float y) '
        f"{{ {before} o = Attention<scale = 0.3>(q, k, v) y = Identity(o) }}"
    )
    graph = parsed(text, heads=np.array([0, 0, H, D]))
    assert apply(LowerMultihead(), graph).fired == 1
    apply(RemoveDead(), graph)
    op_types = types(graph)
    assert op_types[: op_types.index("MultiHeadAttention")] == operators
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, H, N, D)).astype(np.float32) for _ in "qkv")
    fed = {
        f"{n}x" if n in channels_last else n: x.transpose(0, 2, 1, 3).reshape(B, N, H * D) if n in channels_last else x
        for n, x in zip("qkv", (q, k, v), strict=True)
    }
    (y,) = run(graph, fed.pop(next(iter(fed))), **fed).values()
    assert np.abs(y - softmax_of_scores(q, k, v)).max() < 1e-5


def test_multihead_does_not_read_what_is_split_in_another_way() -> None:
    """Heads and their channels swapped: (batch, tokens, size, heads) turned to (batch, heads, tokens, size)."""
    text = (
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float[{B},{N},{H * D}] x) => (float y) {{ '
        "h = Reshape(x, heads) q = Transpose<perm = [0, 3, 1, 2]>(h) o = Attention<scale = 0.3>(q, q, q) "
        "y = Identity(o) }"
    )
    graph = parsed(text, heads=np.array([0, 0, D, H]))
    apply(LowerMultihead(), graph)
    x = np.random.default_rng(0).standard_normal((B, N, H * D)).astype(np.float32)
    q = x.reshape(B, N, D, H).transpose(0, 3, 1, 2)
    (y,) = run(graph, x).values()
    assert np.abs(y - softmax_of_scores(q, q, q)).max() < 1e-5


@pytest.mark.parametrize("kind", ["dynamo", "legacy-17", "dynamo-batch"])
def test_the_vit_keeps_its_numbers(lowering: Pass, kind: str, vit: Any, exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported(kind))
    assert apply(lowering, graph).fired == 2
    for batch in (1, 3) if kind.endswith("batch") else (1,):
        assert differs(graph, images(batch), expected(vit, images(batch))) is None


def test_an_inner_value_does_not_take_the_name_of_the_result() -> None:
    graph = parsed(attention())
    (core,) = (n for n in graph.nodes if n.op_type == "Attention")
    core.name, core.outputs[0].name = "m/Attention", "m/Attention:0"  # as NameNodes leaves it
    LowerMultihead().apply(graph)
    inputs = feeds()
    (y,) = run(graph, inputs.pop("q"), **inputs).values()
    assert np.abs(y - softmax_of_scores(**feeds())).max() < 1e-5
