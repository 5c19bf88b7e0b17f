"""Query, key and value get a linear each, in every packing order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.conftest import EXPORTS
from tests.graphs import HEADS, SIZE, TOKENS, WIDTH, apply, images, parsed, raised, run, tokens
from vitdeploy.graph.model import Graph
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.unpack_qkv import UnpackQkv
from vitdeploy.session import Array

SHAPES = {
    "three_first": ([0, TOKENS, 3, HEADS, SIZE], [2, 0, 3, 1, 4]),  # timm: (q, k, v), heads, head size
    "heads_first": ([0, TOKENS, HEADS, 3, SIZE], [3, 0, 2, 1, 4]),
    "size_first": ([0, TOKENS, SIZE, 3, HEADS], [3, 0, 4, 1, 2]),
    "three_last": ([0, TOKENS, HEADS, SIZE, 3], [4, 0, 2, 1, 3]),
}


def packed(shape: str, tail: str = "", perm: list[int] | None = None) -> str:
    order = perm or SHAPES[shape][1]
    return (
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float[batch,{TOKENS},{WIDTH}] x) => (float y) {{'
        f" m = MatMul(x, w) l = Add(m, b) r = Reshape(l, shape) t = Transpose<perm = {order}>(r)"
        " q4, k4, v4 = Split<axis = 0, num_outputs = 3>(t) q = Squeeze(q4, zero) k = Squeeze(k4, zero)"
        f" v = Squeeze(v4, zero) o = Attention<scale = 0.3>(q, k, v) {tail or 'y = Identity(o)'} }}"
    )


def graph_of(model: str, shape: str, **more: Array) -> Graph:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32) / 4,
        "b": rng.standard_normal(3 * WIDTH).astype(np.float32),
        "shape": np.array(SHAPES[shape][0]), "zero": np.array([0]), **more,
    }  # fmt: skip
    return parsed(model, **constants)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("batch", [1, 3])
def test_any_packing_order_is_split(shape: str, batch: int) -> None:
    graph = graph_of(packed(shape), shape)
    x = tokens(batch)
    reference = run(graph, x)["y"]
    assert (apply(UnpackQkv(), graph).fired, apply(RemoveDead(), graph).fired > 0) == (1, True)
    assert [n.op_type for n in graph.nodes].count("Split") == 0
    assert [n.op_type for n in graph.nodes].count("MatMul") == 3
    assert np.abs(run(graph, x)["y"] - reference).max() < 1e-5 * np.abs(reference).max()
    assert apply(UnpackQkv(), graph).fired == 0


def test_another_reader_of_the_packed_result_is_a_refusal() -> None:
    graph = graph_of(packed("three_first", "s = ReduceSum<keepdims = 0>(l) y = Add(o, s)"), "three_first")
    result = apply(UnpackQkv(), graph)
    assert (result.fired, "reads MatMul.0 too" in next(iter(result.refused.values()))) == (0, True)


def test_moved_tokens_are_a_refusal() -> None:
    swapped = "f = Transpose<perm = [1, 0, 2]>(l) r = Reshape(f, shape)"
    model = packed("three_first").replace("r = Reshape(l, shape)", swapped).replace("batch,", f"{TOKENS},")
    result = apply(UnpackQkv(), graph_of(model, "three_first"))
    assert (result.fired, list(result.refused.values())) == (0, ["its tokens change their places"])


def test_channels_in_another_order_in_one_token_are_a_refusal() -> None:
    order = np.arange(TOKENS * 3 * WIDTH).reshape(TOKENS, 3 * WIDTH)
    order[1, :SIZE] = order[1, :SIZE][::-1]
    moved = "f = Reshape(l, flat) g = Gather<axis = 1>(f, order) r = Reshape(g, shape)"
    model = packed("three_first").replace("r = Reshape(l, shape)", moved)
    result = apply(UnpackQkv(), graph_of(model, "three_first", flat=np.array([0, -1]), order=order.reshape(-1)))
    assert (result.fired, list(result.refused.values())) == (0, ["its tokens change their places"])


@pytest.mark.parametrize("kind", [k for k in EXPORTS if k != "dynamo-20"])
def test_both_blocks_of_the_tiny_vit(kind: str, exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported(kind))
    x: Array = images(1)
    reference = run(graph, x)["output_0"]
    assert apply(UnpackQkv(), graph).fired == 2
    assert np.abs(run(graph, x)["output_0"] - reference).max() < 1e-5 * np.abs(reference).max()
