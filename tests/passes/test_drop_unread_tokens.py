"""Tokens that nothing reads are not computed, and no number changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from torch import nn

from tests.graphs import apply, dynamo, images, legacy, parsed, raised, redrawn, run, types
from vitdeploy import passes
from vitdeploy.graph.blocks import find_parts
from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.passes.drop_unread_tokens import DropUnreadTokens
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.unpack_qkv import UnpackQkv
from vitdeploy.session import Array

N, C = 17, 8
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((C, C)).astype(np.float32), "g": RNG.standard_normal(C).astype(np.float32),
    "positions": RNG.standard_normal((1, N, C)).astype(np.float32), "first": np.array(0), "last": np.array(-1),
    "pair": np.array([0, 5]), "most": np.arange(1, N), "starts": np.array([3]), "ends": np.array([9]),
    "axes": np.array([1]), "steps": np.array([2]), "heads": np.array([0, N, 2, 4]), "merged": np.array([0, N, 8]),
    "open": np.array([0, -1, 8]), "copied": np.array([0, 0, 2, 4]), "flat": np.array([-1, 8]),
    "mask": RNG.standard_normal((1, 1, N, N)).astype(np.float32), "mixed": np.array([0, N * 2, 4]),
}  # fmt: skip


def graph_of(body: str) -> Graph:
    return parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float[batch,{N},{C}] x) => (float y) {{ {body} }}', **WEIGHTS
    )


def tokens_of(graph: Graph, op: str) -> list[int | None]:
    """The second size of the output of each of these operators."""
    return [(dims(node.outputs[0]) or (0, 0))[1] for node in graph.nodes if node.op_type == op]


def narrowed(body: str, fired: int = 1) -> Graph:
    """The graph after the pass, which must not change a number."""
    graph = graph_of(body)
    x = np.random.default_rng(1).standard_normal((2, N, C)).astype(np.float32)
    reference = run(graph, x)["y"]
    assert apply(DropUnreadTokens(), graph).fired == fired
    y = run(graph, x)["y"]
    assert y.shape == reference.shape
    assert np.abs(y - reference).max() <= 1e-6 * np.abs(reference).max()
    assert apply(DropUnreadTokens(), graph).fired == 0
    return graph


SELECTIONS = {
    "a class token": ("y = Gather<axis = 1>(t, first)", 1),
    "counted from behind": ("y = Gather<axis = -2>(t, last)", 1),
    "two of one Gather": ("y = Gather<axis = 1>(t, pair)", 2),
    "a slice with a step": ("y = Slice(t, starts, ends, axes, steps)", 3),
    "two readers": ("a = Gather<axis = 1>(t, last) b = Gather<axis = 1>(t, first) y = Sub(a, b)", 2),
    "overlapping": ("a = Gather<axis = 1>(t, pair) b = Gather<axis = 1>(t, first) y = Sub(a, b)", 2),
}


@pytest.mark.parametrize("selection", list(SELECTIONS))
def test_any_selection(selection: str) -> None:
    text, count = SELECTIONS[selection]
    graph = narrowed(f"m = MatMul(x, w) t = Add(m, g) {text}")
    assert tokens_of(graph, "MatMul") == [count]


REACH = {
    "residual": ("a = Gelu(x) m = MatMul(a, w) t = Add(m, x)", [1]),
    "positions": ("a = Add(x, positions) t = MatMul(a, w)", [1]),
    "norm": ("n = LayerNormalization(x, g) t = MatMul(n, w)", [1]),
    "two products": ("a = MatMul(x, w) b = Erf(a) t = MatMul(b, w)", [1, 1]),
    "moved": (
        "m = MatMul(x, w) a = Transpose<perm = [1, 0, 2]>(m) b = Sigmoid(a) t = Transpose<perm = [1, 0, 2]>(b)",
        [1],
    ),
    "reshaped": ("m = MatMul(x, w) a = Reshape(m, heads) t = Reshape(a, merged)", [1]),
    "reshaped, sizes inferred": ("m = MatMul(x, w) t = Reshape(m, open)", [1]),
    "reshaped, tokens copied": ("m = MatMul(x, w) a = Reshape(m, copied) t = Reshape(a, merged)", [1]),
    "a mean over tokens": ("m = MatMul(x, w) a = ReduceMean(m, axes) t = Add(m, a)", [N]),
    "softmax over tokens": ("m = MatMul(x, w) t = Softmax<axis = 1>(m)", [N]),
    "a norm over tokens": ("m = MatMul(x, w) t = LayerNormalization<axis = 1>(m, positions0)", [N]),
    "tokens and heads merged": ("m = MatMul(x, w) a = Reshape(m, mixed) t = Reshape(a, merged)", [N]),
    "batch and tokens merged": ("m = MatMul(x, w) a = Reshape(m, flat) t = Reshape(a, heads2)", [N]),
}


@pytest.mark.parametrize("form", list(REACH))
def test_the_selection_moves_up_through_operators_on_single_tokens(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = REACH[form]
    monkeypatch.setitem(WEIGHTS, "positions0", WEIGHTS["positions"][0])
    monkeypatch.setitem(WEIGHTS, "heads2", np.array([-1, N, C]))
    graph = narrowed(f"{text} y = Gather<axis = 1>(t, first)", fired=int(expected != [N]))
    assert tokens_of(graph, "MatMul") == expected


def test_what_others_read_in_full_stays_and_a_norm_is_computed_again() -> None:
    graph = narrowed(
        "n = LayerNormalization(x, g) q = MatMul(n, w) k = MatMul(n, w) s = ReduceMean<keepdims = 1>(k, axes)"
        " t = Add(q, s) y = Gather<axis = 1>(t, first)"
    )
    assert sorted(tokens_of(graph, "MatMul"), key=str) == [1, N]
    assert sorted(tokens_of(graph, "LayerNormalization"), key=str) == [1, N]
    assert types(graph).count("Gather") == 2  # of the norm's input, and the one that was there


def test_a_norm_over_tokens_is_computed_once_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "positions0", WEIGHTS["positions"][0])
    graph = narrowed(
        "n = LayerNormalization<axis = 1>(x, positions0) m = MatMul(n, w) t = Add(m, x) y = Gather<axis = 1>(t, first)"
    )
    assert tokens_of(graph, "LayerNormalization") == [N]
    assert tokens_of(graph, "MatMul") == [1]


def test_queries_alone_are_narrowed_and_the_mask_with_them() -> None:
    graph = narrowed(
        "a = Reshape(x, heads) q = Transpose<perm = [0, 2, 1, 3]>(a) k4 = MatMul(x, w) b = Reshape(k4, heads)"
        " k = Transpose<perm = [0, 2, 1, 3]>(b) o = Attention<scale = 0.5>(q, k, k, mask)"
        " c = Transpose<perm = [0, 2, 1, 3]>(o) m = Reshape(c, merged) t = MatMul(m, w) y = Gather<axis = 1>(t, pair)"
    )
    core = next(node for node in graph.nodes if node.op_type == "Attention")
    assert [dims(v)[-2] for v in core.inputs] == [2, N, N, 2]  # type: ignore[index]
    assert sorted(tokens_of(graph, "MatMul"), key=str) == [N, 2]


@pytest.mark.parametrize(
    "body",
    [
        "t = MatMul(x, w) y = Gather<axis = 1>(t, most)",  # all but the class token: not worth a copy
        "t = MatMul(x, w) a = Gather<axis = 1>(t, first) s = ReduceMean<keepdims = 0>(t, axes) y = Add(a, s)",
        "t = Gelu(x) y = Gather<axis = 1>(t, first)",  # no product is saved
        "t = MatMul(x, w) y = Gather<axis = 0>(t, pair0)",  # the batch
    ],
)
def test_left_alone(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "pair0", np.array([0]))
    narrowed(body, fired=0)


def test_a_reshape_that_copies_another_axis_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 0 at the axis of tokens copies axis 2 of its input, whose tokens are on axis 1."""
    monkeypatch.setitem(WEIGHTS, "wide", RNG.standard_normal((C, N * C)).astype(np.float32))
    monkeypatch.setitem(WEIGHTS, "split", np.array([0, N, N, C]))
    monkeypatch.setitem(WEIGHTS, "moved", np.array([0, 1, 0, N * C]))
    body = "m = MatMul(x, wide) a = Reshape(m, split) t = Reshape(a, moved) y = Gather<axis = 2>(t, first)"
    assert tokens_of(narrowed(body, fired=0), "MatMul") == [N]


def test_what_the_model_returns_keeps_all_of_its_tokens() -> None:
    graph = graph_of("m = MatMul(x, w) n = MatMul(m, w) y = Gather<axis = 1>(n, first)")
    graph.model.graph.outputs.append(next(graph.nodes).outputs[0])
    x = np.random.default_rng(1).standard_normal((2, N, C)).astype(np.float32)
    reference = run(graph, x)
    assert apply(DropUnreadTokens(), graph).fired == 1
    assert tokens_of(graph, "MatMul") == [N, 1]
    outputs = run(graph, x)
    for name in ("m", "y"):
        np.testing.assert_allclose(outputs[name], reference[name], atol=1e-5)


def test_causal_attention_is_left_alone() -> None:
    graph = narrowed(
        "a = Reshape(x, heads) q = Transpose<perm = [0, 2, 1, 3]>(a) o = Attention<is_causal = 1>(q, q, q)"
        " c = Transpose<perm = [0, 2, 1, 3]>(o) m = Reshape(c, merged) t = MatMul(m, w) y = Gather<axis = 1>(t, last)"
    )
    assert tokens_of(graph, "MatMul") == [1]
    core = next(node for node in graph.nodes if node.op_type == "Attention")
    assert (dims(core.outputs[0]) or ())[2] == N


def vits() -> dict[str, nn.Module]:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from torchvision.models import VisionTransformer as Torchvision

    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return {
        "token": VisionTransformer(**size),
        "registers": VisionTransformer(**size, reg_tokens=2),
        "distilled": VisionTransformerDistilled(**size),
        "rotary": Eva(**size, use_rot_pos_emb=True, global_pool="token"),
        "torchvision": Torchvision(32, 8, 2, 2, 32, 128, num_classes=10),
        "average": VisionTransformer(**size, global_pool="avg"),
    }


@pytest.mark.parametrize("name", list(vits()))
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("packed", [True, False])
def test_real_models_lose_a_block_s_worth_and_no_number(name: str, exporter: str, packed: bool) -> None:
    if exporter == "legacy" and name in ("rotary", "torchvision"):
        pytest.skip("PyTorch's legacy exporter does not take it as it is")
    graph, _, _ = raised(model(name, exporter))
    passes.run([p for p in order.folding(packed_qkv=packed) if not isinstance(p, DropUnreadTokens)], graph)
    before, x = _work(graph), images(1, 5)
    reference = _first(run(graph, x))
    fired = apply(DropUnreadTokens(), graph).fired
    assert fired == (name != "average")
    apply(RemoveDead(), graph)
    y = _first(run(graph, x))
    assert np.abs(y - reference).max() <= 2e-6 * np.abs(reference).max()
    if fired:
        assert _work(graph) < 0.7 * before  # of two blocks one keeps little more than its keys and values
        assert types(graph).count("Attention") == 2


@cache
def model(name: str, exporter: str) -> bytes:
    module = redrawn(vits()[name])
    return dynamo(module, images()) if exporter == "dynamo" else legacy(module, images())


def _first(outputs: dict[str, Array]) -> Array:
    return next(iter(outputs.values()))


def _work(graph: Graph) -> int:
    """Multiplications of the linears in blocks."""
    products = [n for n in graph.nodes if n.op_type == "MatMul" and n.inputs[1] is not None and n.inputs[1].const_value]
    return sum(int(np.prod([*(dims(n.outputs[0]) or ()), (dims(n.inputs[1]) or (1,))[0]])) for n in products)  # type: ignore[arg-type]


def test_blocks_are_still_found(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    names = [part.name for part in find_parts(graph, structure)]
    passes.run([UnpackQkv(), DropUnreadTokens(), RemoveDead()], graph)
    new_structure = recognize(graph, {})
    assert [part.name for part in find_parts(graph, new_structure)] == names
    assert [site.tokens for site in new_structure.attention] == [17, 1]
    assert [site.key_tokens for site in new_structure.attention] == [17, 17]
    assert [linear.block for linear in new_structure.linears] == [None, *[0] * 6, *[1] * 6, None]
