"""Boxes that are refined from layer to layer are computed in float32 in FP16, and boxes of one layer are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.detectors import Detector
from tests.graphs import parsed, redrawn, run
from tests.quantize.hostile import ready
from tests.two_stages import TwoStages
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import bfloat16, half
from vitdeploy.quantize.box_arithmetic import REASON, find_box_arithmetic
from vitdeploy.quantize.guards import find_lost_guards
from vitdeploy.session import Array

IMAGES = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32) for seed in range(6)]


@pytest.fixture(scope="module")
def detector() -> tuple[Graph, Structure]:
    """Learned queries, so that no selection is rounded; some anchors are near the border, as small objects are."""
    torch.manual_seed(0)
    module = redrawn(Detector(selects=False)).eval()
    with torch.no_grad():
        module.anchors.mul_(3).add_(2)
    return ready(module, IMAGES[0])


def _boxes(graph: Graph) -> Array:
    return np.concatenate([list(run(graph, image).values())[1] for image in IMAGES]).astype(np.float64)


def test_all_but_the_layers_is_kept(detector: tuple[Graph, Structure]) -> None:
    graph, structure = detector
    kept = find_box_arithmetic(graph)
    operators = [node.op_type for node in graph.nodes if node.name in kept]
    assert {"Clip", "Sub", "Div", "Log", "Add", "Sigmoid"} <= set(operators)
    assert operators.count("Log") == 1  # that of the learned anchors is folded
    assert not kept.keys() & {name for linear in structure.linears for name in linear.nodes}


def test_boxes_are_nearer_to_those_of_float32(
    detector: tuple[Graph, Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, structure = detector
    expected = _boxes(graph)
    kept = Graph(graph.model.clone())
    record = half.quantize(kept, structure, (), None)
    guarded = find_lost_guards(graph)
    assert record.float32_rules[REASON] == len(find_box_arithmetic(graph).keys() - guarded.keys())
    monkeypatch.setattr(half, "find_box_arithmetic", lambda _: {})
    lost = Graph(graph.model.clone())
    half.quantize(lost, structure, (), None)
    errors = [np.abs(_boxes(other) - expected) for other in (kept, lost)]
    assert np.median(errors[0]) < 0.5 * np.median(errors[1])
    assert errors[0].max() < errors[1].max()


def test_bfloat16_keeps_them_where_the_engine_reads_types(detector: tuple[Graph, Structure]) -> None:
    graph, structure = detector
    expected, kept = _boxes(graph), Graph(graph.model.clone())
    bfloat16.quantize(kept, structure, (), typed=True)
    logs = [node for node in kept.nodes if node.op_type == "Log"]
    assert logs
    assert {node.outputs[0].dtype for node in logs} == {graph.model.graph.outputs[1].dtype}  # float32
    assert expected.shape == (6, 6, 4)


def test_a_sigmoid_of_one_layer_is_left_alone() -> None:
    graph, structure = ready(redrawn(TwoStages()).eval(), IMAGES[0])
    assert find_box_arithmetic(graph) == {}
    assert REASON not in half.quantize(graph, structure, (), None).float32_rules


def test_the_mean_of_a_distribution_is_part_of_it_and_a_layer_is_not() -> None:
    """D-FINE: the four sides are means over bins; the column of their places is a constant."""
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[1,3,4,8] x, float[1,3,4] u) => (float[1,3,4] y)'
    nodes = (
        "p = Softmax(x) m = MatMul(p, places) s = Squeeze(m, axis) l = MatMul(u, weight) a = Add(l, bias) "
        "e = Exp(a) y = Mul(s, e)"
    )
    graph = parsed(
        f"{head} {{ {nodes} }}", places=np.ones((8, 1), np.float32), axis=np.array([-1]),
        weight=np.eye(4, dtype=np.float32), bias=np.ones(4, np.float32),
    )  # fmt: skip
    kept = find_box_arithmetic(graph)
    assert sorted(node.op_type for node in graph.nodes if node.name in kept) == ["Exp", "MatMul", "Mul", "Squeeze"]
