"""A softmax of a matrix becomes one over the last axis."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.raise_softmax import RaiseSoftmax

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
FLAT, BACK = np.array([-1, 5]), np.array([2, 3, 4, 5])


def model(body: str, shape: str = "2,3,4,5") -> str:
    return f'<ir_version: 8, opset_import: ["" : 18]> vit (float[{shape}] x) => (float y) {{ {body} }}'


RESHAPED = "f = Reshape(x, flat) s = Softmax<axis = -1>(f) y = Reshape(s, back)"
FLATTENED = "f = Flatten<axis = 3>(x) s = Softmax<axis = 1>(f) d = Shape(x) y = Reshape(s, d)"


@pytest.mark.parametrize("body", [RESHAPED, FLATTENED])
def test_fires_with_the_same_numbers(body: str) -> None:
    graph = parsed(model(body), flat=FLAT, back=BACK)
    expected = run(graph, X)["y"]
    assert apply(RaiseSoftmax(), graph).fired == 1
    assert "Softmax" in types(graph)
    assert not {"Flatten", "Reshape"} & set(types(graph))
    assert np.abs(run(graph, X)["y"] - expected).max() < 1e-6


def test_a_batch_that_varies_is_what_is_left_over() -> None:
    graph = parsed(model(RESHAPED, "n,3,4,5"), flat=FLAT, back=np.array([-1, 3, 4, 5]))
    assert apply(RaiseSoftmax(), graph).fired == 1
    assert np.abs(run(graph, X)["y"].sum(-1) - 1).max() < 1e-6


@pytest.mark.parametrize(
    ("body", "flat", "back"),
    [
        (RESHAPED, [-1, 20], BACK),  # over two axes
        (RESHAPED, FLAT, [2, 12, 5]),  # to another shape
        (RESHAPED, [6, 20], [2, 3, 4, 5]),
        (FLATTENED.replace("axis = 3", "axis = 2"), FLAT, BACK),
        (FLATTENED.replace("axis = 1", "axis = 0"), FLAT, BACK),  # over the rows
        ("f = Reshape(x, flat) s = Softmax(f) y = Reshape(s, back) z = Neg(s)", FLAT, BACK),  # another reader
        ("f = Reshape(x, flat) z = Neg(f) s = Softmax(f) w = Reshape(s, back) y = Add(w, w)", FLAT, BACK),
    ],
)
def test_leaves_other_softmaxes_alone(body: str, flat: list[int], back: list[int]) -> None:
    graph = parsed(model(body), flat=np.array(flat), back=np.array(back))
    before = types(graph)
    assert apply(RaiseSoftmax(), graph).fired == 0
    assert types(graph) == before
