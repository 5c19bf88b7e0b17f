"""All switches off give the float32 model, all on the quantized one, one on quantizes that linear alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graphs import images, raised, run
from vitdeploy.errors import GraphError
from vitdeploy.frozen import replace
from vitdeploy.graph.model import Graph, operand
from vitdeploy.graph.structure import Linear
from vitdeploy.quantize import dynamic, qdq
from vitdeploy.quantize.observe import InputStatistics, collect_statistics
from vitdeploy.quantize.placement import select_linears
from vitdeploy.quantize.switched import SwitchedGraph

BATCHES = [images(1, seed) for seed in range(4)]
Write = Callable[[Graph, list[str], dict[str, InputStatistics]], None]
WRITERS: dict[str, Write] = {
    "static": lambda g, names, s: qdq.write_pairs(g, names, s, qdq.PairOptions()),
    "static, bias corrected": lambda g, names, statistics: qdq.write_pairs(
        g, names, statistics, qdq.PairOptions(correct_bias=True)
    ),
    "symmetric": lambda g, names, s: qdq.write_pairs(g, names, s, qdq.PairOptions("int8")),
    "fp8": lambda g, names, s: qdq.write_pairs(g, names, s, qdq.PairOptions("e4m3")),
    "dynamic": lambda g, names, _: dynamic.write_kernels(g, names, 127),
}


@pytest.fixture(scope="module")
def model(exported: Callable[[str], bytes]) -> tuple[Graph, list[Linear], dict[str, InputStatistics]]:
    graph, structure, _ = raised(exported("dynamo"))
    placed, _ = select_linears(structure, ())
    names = _nodes(placed)
    inputs = [operand(n, 0).name or "" for n in graph.nodes if n.name in names]
    return graph, placed, collect_statistics(graph, inputs, BATCHES, len(BATCHES))


def _nodes(linears: list[Linear]) -> list[str]:
    return [name for linear in linears for name in linear.nodes]


@pytest.mark.parametrize("how", WRITERS)
def test_switches_give_the_numbers_of_the_graphs_they_stand_for(
    how: str, model: tuple[Graph, list[Linear], dict[str, InputStatistics]]
) -> None:
    graph, linears, observed = model

    def quantized(chosen: list[Linear]) -> Graph:
        written = Graph(graph.model.clone())
        WRITERS[how](written, _nodes(chosen), observed)
        return written

    with SwitchedGraph(graph, quantized(linears), linears) as switched:
        for chosen in ([], linears, [linears[2]], linears[3:6]):
            outputs, errors = switched.run(BATCHES[0], {linear.name for linear in chosen})
            expected = run(quantized(chosen), BATCHES[0])
            for name, value in expected.items():
                np.testing.assert_allclose(outputs[name], value, atol=1e-5 * np.abs(value).max())
            assert set(errors) == {linear.name for linear in chosen}
    float32 = run(graph, BATCHES[0])["output_0"]
    assert np.abs(run(quantized(linears), BATCHES[0])["output_0"] - float32).max() > 1e-4 * np.abs(float32).max()


def test_the_error_of_a_linear_alone(model: tuple[Graph, list[Linear], dict[str, InputStatistics]]) -> None:
    """Against the same product written in numpy."""
    graph, linears, observed = model
    linear = next(one for one in linears if one.role == "head")
    node = next(n for n in graph.nodes if n.name == linear.nodes[0])
    written = Graph(graph.model.clone())
    qdq.write_pairs(written, _nodes([linear]), observed, qdq.PairOptions())
    with SwitchedGraph(graph, written, [linear]) as switched:
        outputs, errors = switched.run(BATCHES[0], {linear.name})
        exact, _ = switched.run(BATCHES[0])
    difference = outputs["output_0"] - exact["output_0"]
    assert errors[linear.name].noise == pytest.approx(float((difference**2).sum()), rel=1e-3)
    assert errors[linear.name].signal == pytest.approx(float((exact["output_0"] ** 2).sum()), rel=1e-3)
    assert errors[linear.name].numbers == difference.size
    assert node.op_type == "MatMul", "the graph that was given stays as it was"


def test_a_linear_that_is_not_there_is_an_error(model: tuple[Graph, list[Linear], dict[str, InputStatistics]]) -> None:
    graph, linears, _ = model
    gone = replace(linears[0], nodes=("elsewhere/MatMul",))
    with pytest.raises(GraphError, match="is not a product"):
        SwitchedGraph(graph, graph, [gone])
