"""Q/DQ around a MatMul becomes one integer kernel with the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.lower_integer_linears import LowerIntegerLinears
from vitdeploy.passes.remove_dead import RemoveDead

IN, OUT = 16, 8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, IN)).astype(np.float32)
INTEGER = ["QuantizeLinear", "MatMulIntegerToFloat"]


def linear(
    weight: str = "w, ws", activation: str = "s, z", add: str = "y = Add(p, b)", q: str = "", dq: str = ""
) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]> vit (float[2,5,{IN}] x) => (float y) {{
        xq = QuantizeLinear{q}(x, {activation})
        xd = DequantizeLinear{q}(xq, {activation})
        wd = DequantizeLinear{dq or "<axis = 1>"}({weight})
        p = MatMul(xd, wd)
        {add}
    }}"""


def constants(**more: Any) -> dict[str, Any]:
    # 7 bits: without VNNI, sums of u8 x s8 products saturate.
    codes = RNG.integers(-64, 65, (IN, OUT)).astype(np.int8)
    scales = RNG.uniform(0.001, 0.01, OUT).astype(np.float32)
    b = RNG.standard_normal(OUT).astype(np.float32)
    point = np.array(5, np.int8)
    return {"w": codes, "ws": scales, "b": b, "s": np.float32(0.03), "z": point} | more


def lowered(model: str, **more: Any) -> tuple[Any, dict[str, str]]:
    """Return the graph after the pass, which must keep the numbers."""
    graph = parsed(model, **constants(**more))
    reference = run(graph, X)["y"]
    result = apply(LowerIntegerLinears(), graph)
    apply(RemoveDead(), graph)
    y = run(graph, X)["y"]
    assert np.abs(y - reference).max() < 1e-3 * np.abs(reference).max()
    return graph, result.refused


@pytest.mark.parametrize("zero", [np.array(-7, np.int8), np.array(0, np.int8), np.array(131, np.uint8)])
def test_lowers_a_linear_with_its_bias(zero: Any) -> None:
    graph, refused = lowered(linear(), z=zero)
    assert (types(graph), refused) == (INTEGER, {})


def test_lowers_without_bias_and_with_one_scale_for_the_weight() -> None:
    graph, _ = lowered(linear(add="y = Identity(p)"), ws=np.float32(0.01))
    assert types(graph) == [*INTEGER, "Identity"]


@pytest.mark.parametrize("add", ["r = Relu(p) y = Add(p, r)", "y = Add(p, b2)"])
def test_an_add_that_is_no_bias_stays(add: str) -> None:
    graph, _ = lowered(linear(add=add), b2=RNG.standard_normal((5, OUT)).astype(np.float32))
    assert types(graph)[:2] == INTEGER
    assert types(graph)[-1] == "Add"


def test_linears_that_read_one_activation_share_its_codes() -> None:
    both = linear(add="wd2 = DequantizeLinear<axis = 1>(w, ws) p2 = MatMul(xd, wd2) y = Add(p, p2)")
    graph, _ = lowered(both)
    assert types(graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat", "Add"]


ROWS = np.full(IN, 0.01, np.float32)


@pytest.mark.parametrize(
    ("model", "more", "reason"),
    [
        (linear(weight="w, ws, wz"), {"wz": np.arange(OUT, dtype=np.int8)}, "its weight is not symmetric"),
        (linear(), {"w": np.ones((IN, OUT), np.uint8)}, "its weight is not an int8 constant"),
        (linear(dq="<axis = 0>"), {"ws": ROWS}, "its weight does not have one scale for each output channel"),
        (linear(q="<axis = 2>"), {"s": ROWS, "z": np.zeros(IN, np.int8)}, "its activation has more than one scale"),
        (linear(activation="s"), {}, "its activation does not have a zero point of 8 bits"),
    ],
)
def test_refuses_with_a_reason(model: str, more: dict[str, Any], reason: str) -> None:
    graph, refused = lowered(model, **more)
    assert (list(refused.values()), types(graph)[3]) == ([reason], "MatMul")


def test_a_symmetric_zero_point_is_no_reason_to_refuse() -> None:
    _, refused = lowered(linear(weight="w, ws, wz"), wz=np.zeros(OUT, np.int8))
    assert refused == {}


def test_does_not_mention_a_float_linear() -> None:
    model = f'<ir_version: 10, opset_import: ["" : 20]> vit (float[2,5,{IN}] x) => (float y) {{ y = MatMul(x, wf) }}'
    graph, refused = lowered(model, wf=RNG.standard_normal((IN, OUT)).astype(np.float32))
    assert (types(graph), refused) == (["MatMul"], {})
