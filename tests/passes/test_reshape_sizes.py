"""The -1 of a Reshape whose batch varies is solved; where it cannot be known, nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import parsed, run, types
from vitdeploy.graph.model import array, dims
from vitdeploy.passes._reshape_sizes import solve_reshapes

NUMBERS = {"zero": 0, "one": 1, "l0": [0], "l1": [1], "l2": [2], "two": 2, "l4": [4], "l5": [5], "l_1": [-1]}
CONSTANTS = {name: np.array(value) for name, value in NUMBERS.items()}


def model(body: str, shape: str = "batch,5,8") -> str:
    return f'<ir_version: 10, opset_import: ["" : 20]> vit (float[{shape}] x) => (float y) {{ {body} }}'


BATCH = "s = Shape(x) g = Gather(s, zero) b = Unsqueeze(g, l0)"
SCALED = f"{BATCH} f = Cast<to = 1>(b) c = Constant<value = float {{{{{{}}}}}}>() m = Mul(f, c) i = Cast<to = 7>(m)"
SOLVED = {
    "in its place": (f"{BATCH} t = Concat<axis = 0>(b, l2, l5, l_1) z = Relu(x) y = Reshape(z, t)", [0, 2, 5, 4]),
    "moved": (f"{BATCH} t = Concat<axis = 0>(l5, b, l_1) y = Reshape(x, t)", [5, -1, 8]),
    "behind the rest": (f"{BATCH} t = Concat<axis = 0>(l_1, b) y = Reshape(x, t)", [40, -1]),
    "Gather of a list": ("s = Shape(x) b = Gather(s, l0) t = Concat<axis = 0>(b, l_1) y = Reshape(x, t)", [0, 40]),
    "Slice": ("s = Shape(x) b = Slice(s, l0, l1) t = Concat<axis = 0>(b, l_1) y = Reshape(x, t)", [0, 40]),
    "no rest": (f"{BATCH} t = Concat<axis = 0>(b, l2, l5, l4) y = Reshape(x, t)", [0, 2, 5, 4]),
    "a multiple": (f"{BATCH} m = Mul(b, l2) t = Concat<axis = 0>(m, l5, l_1) y = Reshape(x, t)", [-1, 5, 4]),
    "a multiple of a number": (
        f"{BATCH} m = Mul(g, two) u = Unsqueeze(m, l0) t = Concat<axis = 0>(u, l4, l5) y = Reshape(x, t)",
        [-1, 4, 5],
    ),
    "Shape of one": ("b = Shape<end = 1>(x) t = Concat<axis = 0>(b, l_1) y = Reshape(x, t)", [0, 40]),
}


@pytest.mark.parametrize("name", SOLVED)
def test_solves_the_rest(name: str) -> None:
    body, target = SOLVED[name]
    x = np.arange(120, dtype=np.float32).reshape(3, 5, 8)
    before = run(parsed(model(body), **CONSTANTS), x)["y"]
    graph = parsed(model(body), **CONSTANTS)
    assert solve_reshapes(graph) == 1
    (reshape,) = (node for node in graph.nodes if node.op_type == "Reshape")
    assert array(reshape.inputs[1]).tolist() == target
    assert dims(reshape.outputs[0]) == tuple(size if size > 0 else None for size in target)
    assert np.array_equal(run(graph, x)["y"], before)


def test_the_name_of_the_size_survives() -> None:
    """A Reshape further down that reads the batch of the same tensor must be solved as well."""
    graph = parsed(
        model(
            f"{BATCH} t = Concat<axis = 0>(b, l2, l5, l_1) r = Reshape(x, t) p = Transpose<perm = [0, 2, 1, 3]>(r)"
            " u = Concat<axis = 0>(b, l5, l_1) y = Reshape(p, u)"
        ),
        **CONSTANTS,
    )
    assert (solve_reshapes(graph), solve_reshapes(graph), solve_reshapes(graph)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        # a size with another name; a computed size; two varying sizes; a -1 that is no whole number
        (f"{BATCH} z = Concat<axis = 0>(x, x) t = Concat<axis = 0>(b, l_1) y = Reshape(z, t)", "batch,5,8"),
        (f"{BATCH} d = Add(b, b) t = Concat<axis = 0>(d, l_1) y = Reshape(x, t)", "batch,5,8"),
        (f"{BATCH} t = Concat<axis = 0>(b, l_1) y = Reshape(x, t)", "batch,tokens,8"),
        (f"{BATCH} t = Concat<axis = 0>(b, b, l_1) y = Reshape(x, t)", "batch,5,8"),
        (f"{BATCH} m = Mul(b, b) t = Concat<axis = 0>(m, l_1) y = Reshape(x, t)", "batch,5,8"),
        (f"{BATCH} t = Concat<axis = 0>(b, l_1, l_1) y = Reshape(x, t)", "batch,5,8"),
        (f"{BATCH} t = Concat<axis = 0>(b, l0, l_1) y = Reshape(x, t)", "batch,5,8"),
        (f"{BATCH} t = Concat<axis = 0>(b, l2, l_1) y = Reshape(x, t)", "batch,5,7"),
        # a factor that is no whole number, and one of 0
        *((f"{SCALED.format(f)} t = Concat<axis = 0>(i, l_1) y = Reshape(x, t)", "batch,5,8") for f in (1.5, 0.5)),
        (f"{BATCH} m = Mul(b, l0) t = Concat<axis = 0>(m, l_1) y = Reshape(x, t)", "batch,5,8"),
    ],
)
def test_leaves_what_cannot_be_known(body: str, shape: str) -> None:
    graph = parsed(model(body, shape), **CONSTANTS)
    before = types(graph)
    assert (solve_reshapes(graph), types(graph)) == (0, before)
