"""Coordinates and angles behind sines stay in float32 in FP16, and nothing else does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from tests.graphs import parsed
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import half
from vitdeploy.quantize.angles import REASON, find_angles

TEXT = """<ir_version: 10, opset_import: ["" : 20]> g (float[1,2] x, float[1,8] u) => (float[1,8] y) {
    moved = Add(x, half)
    share = Div(moved, side)
    mapped = MatMul(share, matrix)
    angle = Mul(mapped, turn)
    wave = Sin(angle)
    wide = Relu(u)
    y = Add(wave, wide)
}"""
CONSTANTS = {
    "half": np.float32(0.5),
    "side": np.float32(1024),
    "matrix": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32),
    "turn": np.float32(2 * np.pi),
}
NOTHING = Structure(attention=(), linears=(), norms=())


def test_nodes_up_to_the_sine_are_found() -> None:
    graph = parsed(TEXT, **CONSTANTS)
    found = find_angles(graph)
    assert {node.op_type for node in graph.nodes if node.name in found} == {"Add", "Div", "MatMul", "Mul", "Sin"}
    assert set(found.values()) == {REASON}
    assert len(found) == 5  # not the Add behind the sine


def test_a_layer_that_predicts_the_angle_stays_in_half() -> None:
    text = TEXT.replace("moved = Add(x, half)", "rough = Sigmoid(x) moved = Add(rough, half)")
    graph = parsed(text, **CONSTANTS)
    assert not [node for node in graph.nodes if node.op_type == "Sigmoid" and node.name in find_angles(graph)]


def test_points_of_large_images_keep_their_place() -> None:
    x = np.array([[813.3, 642.7]], np.float32)
    u = np.zeros((1, 8), np.float32)
    exact = np.sin((x + 0.5) / 1024 @ CONSTANTS["matrix"] * (2 * np.pi))
    errors = []
    for rule in (True, False):
        graph = parsed(TEXT, **CONSTANTS)
        if rule:
            half.quantize(graph, NOTHING, (), None)
        else:
            half.convert(graph)
        (y,) = ReferenceEvaluator(ir.to_proto(graph.model)).run(None, {"x": x, "u": u})  # in true half
        errors.append(float(np.abs(y - exact).max()))
    assert errors[0] < 1e-3
    assert errors[1] > 4e-3
