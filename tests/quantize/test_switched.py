"""Switches: all off is the float32 model, all on the quantized one, one on is that linear alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graphs import images, raised, run
from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, operand
from vitdeploy.graph.structure import Linear
from vitdeploy.quantize import dynamic, qdq
from vitdeploy.quantize.observe import Observed, observe
from vitdeploy.quantize.placement import place
from vitdeploy.quantize.switched import Switched

BATCHES = [images(1, seed) for seed in range(4)]
Write = Callable[[Graph, list[str], dict[str, Observed]], None]
WRITERS: dict[str, Write] = {
    "static": lambda g, names, seen: qdq.write(g, names, seen, qdq.PairOptions()),
    "static, bias corrected": lambda g, names, seen: qdq.write(g, names, seen, qdq.PairOptions(correct_bias=True)),
    "symmetric": lambda g, names, seen: qdq.write(g, names, seen, qdq.PairOptions("int8")),
    "fp8": lambda g, names, seen: qdq.write(g, names, seen, qdq.PairOptions("e4m3")),
    "dynamic": lambda g, names, _: dynamic.write(g, names, 127),
}


@pytest.fixture(scope="module")
def model(exported: Callable[[str], bytes]) -> tuple[Graph, list[Linear], dict[str, Observed]]:
    graph, structure, _ = raised(exported("dynamo"))
    placed, _ = place(structure, ())
    names = _nodes(placed)
    inputs = [operand(n, 0).name or "" for n in graph.nodes if n.name in names]
    return graph, placed, observe(graph, inputs, BATCHES, len(BATCHES))


def _nodes(linears: list[Linear]) -> list[str]:
    return [name for linear in linears for name in linear.nodes]


@pytest.mark.parametrize("how", WRITERS)
def test_switches_give_the_numbers_of_the_graphs_they_stand_for(
    how: str, model: tuple[Graph, list[Linear], dict[str, Observed]]
) -> None:
    graph, linears, observed = model

    def quantized(chosen: list[Linear]) -> Graph:
        written = Graph(graph.model.clone())
        WRITERS[how](written, _nodes(chosen), observed)
        return written

    with Switched(graph, quantized(linears), linears) as switched:
        for chosen in ([], linears, [linears[2]], linears[3:6]):
            outputs, own = switched.run(BATCHES[0], {linear.name for linear in chosen})
            expected = run(quantized(chosen), BATCHES[0])
            for name, value in expected.items():
                np.testing.assert_allclose(outputs[name], value, atol=1e-5 * np.abs(value).max())
            assert set(own) == {linear.name for linear in chosen}
    float32 = run(graph, BATCHES[0])["output_0"]
    assert np.abs(run(quantized(linears), BATCHES[0])["output_0"] - float32).max() > 1e-4 * np.abs(float32).max()


def test_a_linear_tells_its_own_error(model: tuple[Graph, list[Linear], dict[str, Observed]]) -> None:
    """Against the same product written in numpy."""
    graph, linears, observed = model
    linear = next(one for one in linears if one.role == "head")
    node = next(n for n in graph.nodes if n.name == linear.nodes[0])
    written = Graph(graph.model.clone())
    qdq.write(written, _nodes([linear]), observed, qdq.PairOptions())
    with Switched(graph, written, [linear]) as switched:
        outputs, own = switched.run(BATCHES[0], {linear.name})
        exact, _ = switched.run(BATCHES[0])
    difference = outputs["output_0"] - exact["output_0"]
    assert own[linear.name].noise == pytest.approx(float((difference**2).sum()), rel=1e-3)
    assert own[linear.name].signal == pytest.approx(float((exact["output_0"] ** 2).sum()), rel=1e-3)
    assert own[linear.name].numbers == difference.size
    assert node.op_type == "MatMul", "the graph that was given stays as it was"


def test_a_linear_that_is_not_there_is_an_error(model: tuple[Graph, list[Linear], dict[str, Observed]]) -> None:
    graph, linears, _ = model
    gone = linears[0].model_copy(update={"nodes": ("elsewhere/MatMul",)})
    with pytest.raises(GraphError, match="is no product"):
        Switched(graph, graph, [gone])
