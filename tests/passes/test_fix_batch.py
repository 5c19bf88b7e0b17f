"""A batch that varies becomes a fixed one."""

from __future__ import annotations

from typing import Any

from tests.graphs import differs, expected, images, legacy, parsed
from vitdeploy import passes
from vitdeploy.graph.model import dims
from vitdeploy.passes import order
from vitdeploy.passes.fix_batch import FixBatch


def test_every_shape_is_known_afterwards(vit: Any) -> None:
    graph = parsed(legacy(vit, images(), opset=17, dynamic=True))
    assert dims(graph.model.graph.inputs[0]) == (None, 3, 32, 32)
    passes.run(order.raising(2), graph)
    assert dims(graph.model.graph.inputs[0]) == (2, 3, 32, 32)
    assert all(None not in (dims(value) or (None,)) for node in graph.nodes for value in node.outputs)
    assert differs(graph, images(2), expected(vit, images(2))) is None


def test_a_fixed_batch_is_left_alone(vit: Any) -> None:
    graph = parsed(legacy(vit, images(3)))
    assert FixBatch(batch=1).apply(graph).fired == 0
    assert dims(graph.model.graph.inputs[0]) == (3, 3, 32, 32)
