"""Antialiasing is removed where nothing gets smaller."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import parsed, run
from tests.onnx_files import noise, run_plain, sized_dynamo, sized_vit
from vitdeploy import passes
from vitdeploy.graph.model import Graph, dims
from vitdeploy.passes import order
from vitdeploy.passes.drop_antialias import DropAntialias

MODEL = sized_dynamo(sized_vit(), 18)  # trained at 32 x 32


def open_graph() -> Graph:
    graph = parsed(MODEL)
    passes.run(order.raising(1), graph)
    return graph


def is_smoothed(graph: Graph) -> list[bool]:
    return [bool(n.attributes.get_int("antialias", 0)) for n in graph.nodes if n.op_type == "Resize"]


def test_it_goes_where_positions_only_grow_with_the_same_numbers() -> None:
    graph = open_graph()
    assert is_smoothed(graph) == [True]
    found = DropAntialias(smallest=(32, 32)).apply(graph)
    assert (found.fired, dict(found.refused), is_smoothed(graph)) == (1, {}, [False])
    assert dims(graph.model.graph.inputs[0]) == (1, 3, None, None), "shapes are as before"
    for size in ((32, 32), (32, 64), (96, 40)):
        image = noise(1, 3, *size)
        (expected,), (given,) = run_plain(MODEL, image), run(graph, image).values()
        assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("smallest", [(24, 32), (32, 24)])
def test_it_stays_where_one_side_gets_smaller(smallest: tuple[int, int]) -> None:
    graph = open_graph()
    found = DropAntialias(smallest=smallest).apply(graph)
    assert (found.fired, is_smoothed(graph)) == (0, [True])
    (reason,) = dict(found.refused).values()
    assert reason.startswith("it makes [1, 32, 4, 4] smaller")


def test_other_filters_stay() -> None:
    graph = open_graph()
    (resize,) = (n for n in graph.nodes if n.op_type == "Resize")
    resize.attributes.add(type(resize.attributes["mode"])("mode", resize.attributes["mode"].type, "linear"))
    found = DropAntialias(smallest=(32, 32)).apply(graph)
    assert list(dict(found.refused).values()) == ["its filter is not cubic"]
