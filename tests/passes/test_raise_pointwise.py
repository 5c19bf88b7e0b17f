"""A 1×1 convolution becomes a linear over channels last, and a convolution again where both moves are still there."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph, operand
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes.lower_pointwise import LowerPointwise
from vitdeploy.passes.merge_moves import MergeMoves
from vitdeploy.passes.raise_pointwise import RaisePointwise
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.quantize.observe import collect_statistics
from vitdeploy.quantize.qdq import PairOptions, write_pairs
from vitdeploy.quantize.weights import WeightStorage, write_weights
from vitdeploy.session import Array

RNG = np.random.default_rng(0)
K, N = 6, 5
LINEAR = ["Transpose", "MatMul", "Add", "Transpose"]


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def graph_of(body: str, x: Array, **constants: Array) -> Graph:
    """Return a graph whose convolutions do not read the image itself, and whose nodes have names."""
    shape = ",".join(["b", *(str(n) for n in x.shape[1:])])
    nodes = f"{{ x = Relu(image) {body} }}"
    text = f'<ir_version: 10, opset_import: ["" : 23]> vit (float[{shape}] image) => (float y) {nodes}'
    weights = {"w": draw(N, K, *[1] * (x.ndim - 2)), "b": draw(N), **constants}
    graph = parsed(text, **{name: value for name, value in weights.items() if f"{name}," in body or f"{name})" in body})
    graph.infer_shapes()
    for number, node in enumerate(graph.nodes):
        node.name = f"layers.{number}/{node.op_type}"
    return graph


def check(graph: Graph, x: Array, rewrite: RaisePointwise | LowerPointwise, fired: int) -> None:
    reference = run(graph, x)["y"]
    assert apply(rewrite, graph).fired == fired
    apply(RemoveDead(), graph)
    assert np.abs(run(graph, x)["y"] - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("inputs", ["x, w, b", "x, w"])
def test_a_convolution_of_one_by_one_is_a_linear_and_back(sizes: tuple[int, ...], inputs: str) -> None:
    x = draw(2, K, *sizes)
    graph = graph_of(f"c = Conv({inputs}) y = Sigmoid(c)", x)
    check(graph, x, RaisePointwise(), 1)
    linear = [name for name in LINEAR if name != "Add" or "b" in inputs]
    assert types(graph) == ["Relu", *linear, "Sigmoid"]
    (found,) = recognize(graph, {}).linears
    assert (found.size, found.channels_first, found.name) == ((K, N), True, "layers.1")
    check(graph, x, LowerPointwise(), 1)
    assert types(graph) == ["Relu", "Conv", "Sigmoid"]
    assert [node.name for node in graph.nodes][1] == "layers.1/Conv"


@pytest.mark.parametrize(
    ("call", "weight"),
    [
        ("Conv<group = 2>(x, w, b)", (N + 1, K // 2, 1, 1)),
        ("Conv<strides = [2, 2]>(x, w, b)", (N, K, 1, 1)),
        ("Conv<pads = [1, 1, 1, 1]>(x, w, b)", (N, K, 1, 1)),
        ("Conv(x, w, b)", (N, K, 3, 1)),
        ("Conv(image, w, b)", (N, K, 1, 1)),
    ],
)
def test_leaves_other_convolutions_alone(call: str, weight: tuple[int, ...]) -> None:
    x = draw(2, K, 4, 4)
    graph = graph_of(f"c = {call} r = Relu(c) y = Sigmoid(r)", x, w=draw(*weight), b=draw(weight[0]))
    check(graph, x, RaisePointwise(), 0)


def test_a_computed_weight_stays() -> None:
    x = draw(2, K, 4, 4)
    graph = graph_of("v = ReduceMean<keepdims = 1>(x) u = Mul(v, w) y = Conv(x, u)", x, w=draw(N, K, 1, 1))
    check(graph, x, RaisePointwise(), 0)


def test_convolutions_of_one_value_share_the_move() -> None:
    x = draw(2, K, 4, 4)
    graph = graph_of("c = Conv(x, w, b) d = Conv(x, w, b) y = Mul(c, d)", x)
    check(graph, x, RaisePointwise(), 2)
    assert types(graph).count("Transpose") == 3
    check(graph, x, LowerPointwise(), 2)
    assert types(graph).count("Transpose") == 0


def test_moves_of_heads_merge_and_leave_a_linear() -> None:
    """Queries of a channels-first attention, (B, C, H·W) to (B, heads, H·W, size), need no convolution."""
    x = draw(2, K, 4, 3)
    body = "c = Conv(x, w, b) r = Reshape(c, heads) t = Transpose<perm = [0, 1, 3, 2]>(r) y = Sigmoid(t)"
    graph = graph_of(body, x, w=draw(K, K, 1, 1), b=draw(K), heads=np.array([0, 2, 3, 12]))
    check(graph, x, RaisePointwise(), 1)
    apply(MergeMoves(), graph)
    assert types(graph) == ["Relu", "Transpose", "MatMul", "Add", "Reshape", "Transpose", "Sigmoid"]
    check(graph, x, LowerPointwise(), 0)


@pytest.mark.parametrize("channels", [1, 2])
def test_one_number_for_all_channels_is_no_bias(channels: int) -> None:
    """A Conv takes a bias with a number for each of its channels only, and an Add may widen a single one."""
    x = draw(2, K, 4, 3)
    moved = "t = Transpose<perm = [0, 2, 3, 1]>(x) m = MatMul(t, w) a = Add(m, b)"
    body = f"{moved} u = Transpose<perm = [0, 3, 1, 2]>(a) y = Sigmoid(u)"
    graph = graph_of(body, x, w=draw(K, channels), b=draw(3 - channels))
    check(graph, x, LowerPointwise(), 0)


def quantized(x: Array, *, weights_only: bool) -> Graph:
    graph = graph_of("c = Conv(x, w, b) d = Conv(x, w, b) y = Mul(c, d)", x)
    apply(RaisePointwise(), graph)
    graph.infer_shapes()
    products = [node for node in graph.nodes if node.op_type == "MatMul"]
    names = [node.name or "" for node in products]
    if weights_only:
        write_weights(graph, names, WeightStorage(8))
    else:
        statistics = collect_statistics(graph, [operand(products[0], 0).name or ""], [x], 1)
        write_pairs(graph, names, statistics, PairOptions())
    return graph


def test_pairs_move_before_the_convolution() -> None:
    x = draw(2, K, 4, 3)
    graph = quantized(x, weights_only=False)
    check(graph, x, LowerPointwise(), 2)
    expected = [
        "Conv",
        "Conv",
        "DequantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Mul",
        "QuantizeLinear",
        "Relu",
    ]
    names = [node.name for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert names[:2] == ["x/quantize", "x/dequantize"], "not after a convolution: its kernel is another one's"
    assert sorted(types(graph)) == expected, "one pair for both convolutions, and a kernel of codes for each"


def test_the_integer_product_keeps_channels_last() -> None:
    x = draw(2, K, 4, 3)
    check(quantized(x, weights_only=False), x, LowerPointwise(int8_linears="integer"), 0)


@pytest.mark.parametrize("form", ["qdq", "integer"])
def test_weights_that_engines_unpack_stay_in_a_product(form: str) -> None:
    x = draw(2, K, 4, 3)
    check(quantized(x, weights_only=True), x, LowerPointwise(int8_linears=form), 0)  # type: ignore[arg-type]
