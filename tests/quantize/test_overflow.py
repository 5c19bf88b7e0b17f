"""Nodes that float16 cannot hold are found, with the tensor or constant that is the reason."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import parsed
from vitdeploy.quantize.overflow import LIMIT, find_overflow, find_unfit_constants
from vitdeploy.quantize.ranges import Range

TEXT = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float y) {{ {} }}'


def test_nodes_that_write_or_read_a_large_tensor() -> None:
    graph = parsed(TEXT.format("a = Neg(x) b = Exp(a) c = Sqrt(b) y = Relu(c)"))
    ranges = {"x": Range(0, 1), "a": Range(-1, 0), "b": Range(0, 1.01 * LIMIT), "c": Range(-LIMIT, LIMIT)}
    assert find_overflow(graph, ranges) == {"Exp.1": "b reaches 1.65e+04", "Sqrt.2": "b reaches 1.65e+04"}


@pytest.mark.parametrize(("op_type", "high", "sums"), [("ReduceMean", 600, "1.8e+04"), ("ReduceL2", 24, "1.73e+04")])
def test_a_partial_sum_can_be_large_where_the_result_is_small(op_type: str, high: float, sums: str) -> None:
    text = TEXT.replace("float[2] x", "float[N,5,30] x").format(f"a = Relu(x) y = {op_type}<keepdims = 0>(a, axis)")
    graph = parsed(text, axis=np.array([2], np.int64))
    assert find_overflow(graph, {"a": Range(0, high), "y": Range(0, high)}) == {
        f"{op_type}.1": f"its sums may reach {sums}"
    }
    assert find_overflow(graph, {"a": Range(0, high / 2), "y": Range(0, high)}) == {}


def test_a_mask_is_not_large() -> None:
    graph = parsed(TEXT.format("a = Add(x, x) y = Softmax(a)"))
    assert find_overflow(graph, {"a": Range(-1e9, 3, masked=True)}) == {}
    assert set(find_overflow(graph, {"a": Range(-1e9, 3)})) == {"Add.0", "Softmax.1"}


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ([1, -7e4], "w reaches 7e+04"),
        ([1e-12], "w is 1e-12, which float16 rounds to 0"),
        ([1e-12, 1], None),  # a weight may
        ([-1e9, 1], None),  # a mask
        ([65504, -np.inf], None),
    ],
)
def test_constants(numbers: list[float], why: str | None) -> None:
    graph = parsed(TEXT.format("a = Relu(x) y = Add(a, w)"), w=np.array(numbers, np.float32))
    assert find_unfit_constants(graph) == ({} if why is None else {"Add.1": why})
