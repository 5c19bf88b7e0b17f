"""Fills and empty paddings that do not depend on the image are folded; all others stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import parsed, run, types
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
