"""A height and a width that vary become fixed ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graphs import parsed, run, types
from tests.onnx_files import noise, run_plain, sized_dynamo, sized_legacy, sized_vit
from vitdeploy import passes
from vitdeploy.graph.model import dims
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.passes.fix_size import FixSize

EXPORTS: dict[str, Callable[[], bytes]] = {
    "legacy-14": lambda: sized_legacy(sized_vit(), 14),
    "dynamo-18": lambda: sized_dynamo(sized_vit(), 18),  # sides are named `8*h`
}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("size", [(24, 40), (48, 32)])
def test_shapes_are_numbers_and_shape_arithmetic_is_gone(kind: str, size: tuple[int, int]) -> None:
    model = EXPORTS[kind]()
    graph = parsed(model)
    passes.run(order.raising(1, size), graph)
    assert dims(graph.model.graph.inputs[0]) == (1, 3, *size)
    assert all(None not in (dims(value) or (None,)) for node in graph.nodes for value in node.outputs)
    assert not {"Shape", "Resize", "Expand", "If"} & set(types(graph))
    assert len(recognize(graph, {}).attention) == 2
    (expected,) = run_plain(model, noise(1, 3, *size))
    (given,) = run(graph, noise(1, 3, *size)).values()
    assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_batch_keeps_its_name() -> None:
    graph = parsed(EXPORTS["legacy-14"]())
    assert FixSize(height=24, width=40).apply(graph).fired == 1
    image, scores = graph.model.graph.inputs[0], graph.model.graph.outputs[0]
    assert [str(size) for size in image.shape or ()] == ["batch", "3", "24", "40"]
    assert [str(size) for size in scores.shape or ()] == ["batch", "10"]


def test_sides_that_are_fixed_are_left_alone() -> None:
    graph = parsed(sized_legacy(sized_vit(), 17, {"image": {0: "batch", 3: "width"}}))
    assert FixSize(height=64, width=40).apply(graph).fired == 1
    assert dims(graph.model.graph.inputs[0]) == (None, 3, 32, 40)
    assert FixSize(height=64, width=64).apply(graph).fired == 0
    assert dims(graph.model.graph.inputs[0]) == (None, 3, 32, 40)
