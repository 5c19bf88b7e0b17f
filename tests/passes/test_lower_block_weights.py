"""A dequantized weight and its product become ONNX Runtime's MatMulNBits with the same numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.lower_block_weights import LowerBlockWeights
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.quantize import weights
from vitdeploy.quantize.weights import WeightStorage

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 96)).astype(np.float32)
W = RNG.standard_normal((96, 7)).astype(np.float32)
B = RNG.standard_normal(7).astype(np.float32)


def linear(tail: str = "y = Add(p, b)") -> Graph:
    text = f"""<ir_version: 10, opset_import: ["" : 21]> vit (float[2,5,96] x) => (float y) {{
        p = MatMul(x, w)
        {tail}
    }}"""
    return parsed(text, w=W, b=B)


STORAGES = [WeightStorage(bits, group) for bits, group in ((8, 32), (8, 16), (4, 32), (4, 64), (4, 16))]


@pytest.mark.parametrize("tail", ["y = Add(p, b)", "y = Add(b, p)", "y = Neg(p)", "y = Add(p, x7)"])
@pytest.mark.parametrize("form", STORAGES, ids=str)
def test_the_numbers_stay(form: WeightStorage, tail: str) -> None:
    graph = linear(tail.replace("x7", "c"))
    if "c)" in tail.replace("x7", "c"):
        graph = linear("c = Softmax(p) y = Add(p, c)")  # no bias: it is no constant
    weights.write_weights(graph, ["MatMul.0"], form)
    reference = run(graph, X)["y"]
    result = apply(LowerBlockWeights(), graph)
    apply(RemoveDead(), graph)
    assert (result.fired, result.refused) == (1, {})
    block = next(n for n in graph.nodes if n.op_type == "MatMulNBits")
    assert (block.name, block.attributes.get_int("bits")) == ("MatMul.0", form.bits)
    assert block.attributes.get_int("accuracy_level") == 1
    assert ("Add" in types(graph)) == (" c)" in tail or "x7" in tail)
    assert "DequantizeLinear" not in types(graph)
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-4


def test_symmetric_int4_is_shifted() -> None:
    graph = parsed(
        """<ir_version: 10, opset_import: ["" : 21]> vit (float[2,5,96] x) => (float y) {
            d = DequantizeLinear<axis = 0, block_size = 32>(w, s)
            y = MatMul(x, d)
        }""",
        s=RNG.uniform(0.1, 0.2, (3, 7)).astype(np.float32), w=np.zeros((96, 7), np.float32),
    )  # fmt: skip
    codes = RNG.integers(-8, 8, (96, 7)).astype(ml_dtypes.int4)
    graph.nodes.__next__().replace_input_with(0, graph.initializer(codes, "codes"))
    reference = run(graph, X)["y"]
    assert apply(LowerBlockWeights(), graph).fired == 1
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-4 * np.abs(reference).max()


def test_what_has_no_blocks_is_refused() -> None:
    graph = linear()
    weights.write_weights(graph, ["MatMul.0"], WeightStorage(8))
    result = apply(LowerBlockWeights(), graph)
    assert (result.fired, list(result.refused.values())) == (0, ["its weight has no blocks along its input channels"])
    graph = linear()
    weights.write_weights(graph, ["MatMul.0"], WeightStorage(8, 96))
    result = apply(LowerBlockWeights(), graph)
    assert (result.fired, next(iter(result.refused.values()))[:23]) == (0, "its blocks have 96 rows")


def test_a_quantized_activation_is_refused() -> None:
    graph = parsed(
        """<ir_version: 10, opset_import: ["" : 21]> vit (float[2,5,96] x) => (float y) {
            q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
            y = MatMul(a, w)
        }""",
        s=np.float32(0.03), z=np.uint8(120), w=W,
    )  # fmt: skip
    weights.write_weights(graph, ["MatMul.2"], WeightStorage(8, 32))
    result = apply(LowerBlockWeights(), graph)
    assert (result.fired, list(result.refused.values())) == (0, ["its activation is quantized as well"])
