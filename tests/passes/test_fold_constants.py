"""Fills and empty paddings that do not depend on the image are folded; all others stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import parsed, run, types
from vitdeploy.passes import fold_constants
from vitdeploy.passes.fold_constants import FoldConstants


def model(body: str) -> str:
    return f'<ir_version: 10, opset_import: ["" : 20]> vit (float[batch,3,4] x) => (float y) {{ {body} }}'


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_pad_by_nothing_goes(mode: str) -> None:
    graph = parsed(model(f'p = Pad<mode = "{mode}">(x, pads) y = Relu(p)'), pads=np.zeros(6, np.int64))
    FoldConstants().apply(graph)
    assert types(graph) == ["Relu"]
    assert np.array_equal(run(graph, X)["y"], X)


def test_a_pad_by_a_computed_nothing_goes() -> None:
    """Swin's legacy export computes the padding from a filled constant."""
    graph = parsed(model("z = ConstantOfShape(n) c = Cast<to = 7>(z) p = Pad(x, c) y = Relu(p)"), n=np.array([6]))
    FoldConstants().apply(graph)
    assert types(graph) == ["Relu"]


@pytest.mark.parametrize("pads", [[0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, -1]])
def test_a_pad_by_something_stays(pads: list[int]) -> None:
    graph = parsed(model("p = Pad(x, pads) y = Relu(p)"), pads=np.array(pads))
    FoldConstants().apply(graph)
    assert types(graph) == ["Pad", "Relu"]


def test_a_computed_pad_stays() -> None:
    graph = parsed(model("s = Shape(x) z = Sub(s, s) p = Concat<axis = 0>(s, z) q = Pad(x, p) y = Relu(q)"))
    FoldConstants().apply(graph)
    assert "Pad" in types(graph)


TOWER = (
    "n = LayerNormalization<axis = -1>(prompt, gamma) a, b = Split<axis = -1, num_outputs = 2>(n) s = Sigmoid(a) "
    "t = Mul(s, b)"
)
PROMPT = {"prompt": np.arange(24, dtype=np.float32).reshape(3, 8) ** 1.5, "gamma": np.full(8, 2, np.float32)}


def test_a_part_that_does_not_see_the_image_is_computed_once() -> None:
    """The optimizer evaluates neither LayerNormalization nor Split, which give several results."""
    text = model(f"{TOWER} y = Mul(x, t)")
    before = run(parsed(text, **PROMPT), X)["y"]
    graph = parsed(text, **PROMPT)
    assert FoldConstants().apply(graph).refused == {}
    assert types(graph) == ["Mul"]
    assert np.allclose(run(graph, X)["y"], before, atol=1e-6)


def test_all_results_of_such_a_part_are_stored() -> None:
    text = model(f"{TOWER} u = Add(x, s) v = Mul(u, b) y = Add(v, t)")
    before = run(parsed(text, **PROMPT), X)["y"]
    graph = parsed(text, **PROMPT)
    FoldConstants().apply(graph)
    assert types(graph) == ["Add", "Mul", "Add"]
    assert np.allclose(run(graph, X)["y"], before, atol=1e-5)


def test_random_numbers_are_drawn_in_every_run() -> None:
    graph = parsed(model("r = RandomNormal<shape = [3, 4]>() s = Sigmoid(r) y = Add(x, s)"))
    FoldConstants().apply(graph)
    assert types(graph) == ["RandomNormal", "Sigmoid", "Add"]


def test_a_result_that_is_too_large_stays_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_constants, "_LARGEST_RESULT_ELEMENTS", 6)
    graph = parsed(model(f"{TOWER} y = Mul(x, t)"), **PROMPT)
    result = FoldConstants().apply(graph)
    assert ["does not depend on the image" in reason for reason in result.refused.values()] == [True]
    assert "LayerNormalization" in types(graph)


def test_the_weights_of_a_quantized_model_stay_quantized() -> None:
    text = model("w = DequantizeLinear(codes, scale) n = Relu(w) y = Mul(x, n)")
    graph = parsed(text, codes=np.arange(12, dtype=np.int8).reshape(3, 4), scale=np.float32(0.1))
    FoldConstants().apply(graph)
    assert types(graph) == ["DequantizeLinear", "Relu", "Mul"]


def test_the_order_of_the_nodes_does_not_matter() -> None:
    graph = parsed(model(f"{TOWER} u = Relu(x) y = Mul(u, t)"), **PROMPT)
    main = graph.model.graph
    relu = next(node for node in main if node.op_type == "Relu")
    main.remove(relu)
    main.append(relu)
    FoldConstants().apply(graph)
    assert types(graph) == ["Relu", "Mul"]


def test_an_epsilon_near_zero_stays() -> None:
    """onnxscript's optimizer takes 1e-12, the epsilon of transformers' LayerNorms, for zero by default."""
    graph = parsed(model("r = ReduceSum<keepdims = 1>(x) e = Add(r, small) y = Div(x, e)"), small=np.float32(1e-12))
    FoldConstants().apply(graph)
    assert types(graph) == ["ReduceSum", "Add", "Div"]
    assert np.array_equal(run(graph, np.zeros_like(X))["y"], np.zeros_like(X))


@pytest.mark.parametrize(("operator", "number"), [("Add", 0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0)])
def test_an_operation_without_effect_goes(operator: str, number: float) -> None:
    graph = parsed(model(f"n = {operator}(x, number) y = Relu(n)"), number=np.float32(number))
    FoldConstants().apply(graph)
    assert types(graph) == ["Relu"]
