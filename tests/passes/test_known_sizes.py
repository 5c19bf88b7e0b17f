"""With a dynamic batch, fixed sizes become constants; the batch stays computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graphs import Site, differs, expected, legacy, parsed, raised, redrawn, run, tokens, types
from vitdeploy.passes._known_sizes import fold_fixed_sizes

X = np.zeros((3, 5, 7), np.float32)


def model(body: str, shape: str = "batch,5,7") -> str:
    return f'<ir_version: 10, opset_import: ["" : 20]> vit (float[{shape}] x) => (int64 y) {{ {body} }}'


NUMBERS = {"zero": 0, "last": -1, "l0": [0], "l1": [1], "l2": [2], "l_1": [-1], "both": [2, 1], "l9": [2**63 - 1]}
CONSTANTS = {name: np.array(value) for name, value in NUMBERS.items()}

FIXED = {
    "Slice of the last": ("s = Shape(x) y = Slice(s, l_1, l9)", [7]),
    "Slice, axes given": ("s = Shape(x) y = Slice(s, l1, l2, l0)", [5]),
    "Slice backwards": ("s = Shape(x) y = Slice(s, l_1, l0, l0, l_1)", [7, 5]),
    "Gather": ("s = Shape(x) y = Gather(s, last)", 7),
    "Gather of two": ("s = Shape(x) y = Gather(s, both)", [7, 5]),
    "Shape with a start": ("s = Shape<start = 1>(x) y = Gather(s, zero)", 5),
    "Shape with an end": ("s = Shape<start = -2, end = -1>(x) y = Gather(s, last)", 5),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixes_what_does_not_vary(name: str) -> None:
    body, sizes = FIXED[name]
    graph = parsed(model(body), **CONSTANTS)
    assert fold_fixed_sizes(graph) == 1
    result = run(graph, X)["y"]
    assert (result.shape, result.tolist()) == (np.shape(sizes), sizes)
    assert "Identity" in types(graph)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("s = Shape(x) y = Gather(s, zero)", "batch,5,7"),
        ("s = Shape(x) y = Slice(s, l0, l2)", "batch,5,7"),
        ("s = Shape(x) y = Gather(s, last)", "batch,tokens,channels"),
        ("s = Shape(x) i = Neg(l1) y = Gather(s, i)", "batch,5,7"),
        ("s = Cast<to = 7>(x) y = Gather<axis = 0>(s, l1)", "batch,5,7"),
    ],
)
def test_leaves_what_varies(body: str, shape: str) -> None:
    graph = parsed(model(body, shape), **CONSTANTS)
    before = types(graph)
    assert (fold_fixed_sizes(graph), types(graph)) == (0, before)


def test_the_scale_of_attention_is_seen_with_a_dynamic_batch() -> None:
    module = redrawn(Site(lambda q, k, v, x: torch.nn.functional.scaled_dot_product_attention(q, k, v)))
    graph, _, refused = raised(legacy(module, tokens(2), opset=14, dynamic=True))
    (core,) = (n for n in graph.nodes if n.op_type == "Attention")
    assert (core.attributes.get_float("scale", 0.0), refused) == (pytest.approx(0.25), {})
    assert not {"Sqrt", "Cast", "Div", "Mul"} & set(types(graph))
    for batch in (1, 3):
        assert differs(graph, tokens(batch), expected(module, tokens(batch))) is None
