"""Ranges equal numpy's over all batches, tensors that are not finite are named, and masks do not count."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, parsed, raised, run, types
from vitdeploy.errors import QuantizeError
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.quantize.ranges import Range, collect_ranges
from vitdeploy.session import Array

TEXT = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float y) {{ {} }}'


def batches(*rows: list[float]) -> Iterator[Array]:
    return (np.array(row, np.float32) for row in rows)


def test_the_extremes_of_all_batches() -> None:
    graph = parsed(TEXT.format("a = Mul(x, w) y = Relu(a)"), w=np.array([1, -10], np.float32))
    found = collect_ranges(graph, batches([1, 2], [-3, -4], [0, 1]))
    assert found == {"x": Range(-4, 2), "a": Range(-20, 40), "y": Range(0, 40)}
    assert [r.magnitude for r in found.values()] == [4, 40, 40]
    assert collect_ranges(graph, batches([1, 2]), ["a"]) == {"a": Range(-20, 1)}


def test_the_graph_stays_as_it_was(exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported("dynamo"))
    apply(LowerPrimitives(), graph)
    before = types(graph), run(graph, images())["output_0"], [v.name for v in graph.model.graph.outputs]
    found = collect_ranges(graph, (images(1, seed) for seed in range(3)))
    assert (types(graph), [v.name for v in graph.model.graph.outputs]) == (before[0], before[2])
    np.testing.assert_array_equal(run(graph, images())["output_0"], before[1])
    floats = {v.name for n in graph.nodes for v in n.outputs if v.dtype == ir.DataType.FLOAT}
    assert floats <= set(found)
    probabilities = found["blocks.0.attn/Attention/softmax:0"]
    assert 0 <= probabilities.low < probabilities.high <= 1
    assert found["output_0"].magnitude >= np.abs(before[1]).max()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = Log(x) b = IsNaN(a) y = Where(b, x, a)", r"a, computed by Log.0 \(Log\), has NaN .* calibration batch 1"),
        ("a = Div(w, x) y = Min(a, w)", r"a, computed by Div.0 \(Div\), has infinity"),
        ("a = Neg(x) b = Sqrt(a) y = Sqrt(b)", r"b, computed by Sqrt.1 \(Sqrt\), has NaN"),
    ],
)
def test_what_is_not_finite_is_named_even_where_it_vanishes_again(body: str, why: str) -> None:
    graph = parsed(TEXT.format(body), w=np.ones(2, np.float32))
    second = {"Log": [1.0, -1.0], "Div": [2.0, 0.0]}.get(body[4:7], [1.0, 1.0])
    with pytest.raises(QuantizeError, match=why):
        collect_ranges(graph, batches([-1, -2] if "Neg" in body else [1, 2], second))


def test_an_image_that_is_not_finite_is_named() -> None:
    with pytest.raises(QuantizeError, match="x, the graph's input, has infinity"):
        collect_ranges(parsed(TEXT.format("y = Relu(x)")), batches([1, np.inf]))


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min, -1e9, -65504])
def test_a_mask_counts_only_upwards(low: float) -> None:
    graph = parsed(TEXT.format("s = Mul(x, x) a = Add(s, m) y = Softmax(a)"), m=np.array([0, low], np.float32))
    found = collect_ranges(graph, batches([5, 3]))
    assert (found["a"].masked, found["a"].magnitude) == (True, 25)
    assert (found["s"].masked, found["s"].magnitude) == (False, 25)
    assert not found["y"].masked


def test_minus_infinity_around_an_image_counts_only_upwards() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[1, 1, 2, 2] x) => (float y) {
        p = Pad(x, pads, low) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p) }"""
    graph = parsed(text, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), low=np.array(-np.inf, np.float32))
    found = collect_ranges(graph, [np.array([[[[1, -9], [2, 3]]]], np.float32)])
    assert (found["p"].masked, found["p"].magnitude) == (True, 3)
    assert (found["y"].masked, found["y"].magnitude) == (False, 3)


def test_minus_infinity_without_a_softmax_is_no_mask() -> None:
    graph = parsed(TEXT.format("y = Add(x, m)"), m=np.array([0, -np.inf], np.float32))
    with pytest.raises(QuantizeError, match=r"y, computed by Add\.0"):
        collect_ranges(graph, batches([5, 3]))


def test_nothing_to_measure_is_an_error() -> None:
    graph = parsed(TEXT.format("y = Relu(x)"))
    with pytest.raises(QuantizeError, match="no image to take ranges from"):
        collect_ranges(graph, [])
    with pytest.raises(QuantizeError, match="z is not a float32 tensor"):
        collect_ranges(graph, batches([1, 2]), ["y", "z"])
