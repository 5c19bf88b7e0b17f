"""OpenVINO's attention kernel overwrites queries that it still has to read, unless their moves are kept out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.graphs import apply, parsed, run
from vitdeploy.graph.model import Graph
from vitdeploy.passes.shield_moves import ShieldMoves
from vitdeploy.session import Array

KEYS, SIZE = 16, 48
FORMS = {
    # the queries are moved, the result is not
    "queries": ("{B}, {L}, {H}, 48", "Transpose<perm = [0, 2, 1, 3]>(r)", "Relu(o)"),
    # both are
    "both": ("{B}, {L}, {H}, 48", "Transpose<perm = [0, 2, 1, 3]>(r)", "Transpose<perm = [0, 2, 1, 3]>(o)"),
    # the result is moved, behind queries that are computed in their final order
    "result": ("{B}, {H}, {L}, 48", "Mul(r, factor)", "Transpose<perm = [0, 2, 1, 3]>(o)"),
}


def attention(form: str, heads: int, queries: int, batch: str = "64") -> Graph:
    shape, before, behind = FORMS[form]
    sizes = shape.format(B=batch, H=heads, L=queries)
    return parsed(
        f'<ir_version: 9, opset_import: ["" : 20]> vit (float[{sizes}] q, float[{batch}, {heads}, 48, {KEYS}] k,'
        f" float[{batch}, {heads}, {KEYS}, 48] v) => (float y) {{"
        f" r = Relu(q) moved = {before} s = MatMul(moved, k) p = Softmax<axis = -1>(s) o = MatMul(p, v)"
        f" y = {behind} }}",
        factor=np.float32(0.5),
    )


def inputs(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = [[64 if not isinstance(n, int) else n for n in value.shape or ()] for value in graph.model.graph.inputs]
    names = [value.name or "" for value in graph.model.graph.inputs]
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}


def compute(graph: Graph, values: dict[str, Array]) -> Array:
    x, *_ = values.values()
    return run(graph, x, k=values["k"], v=values["v"])["y"]


def in_openvino(graph: Graph, values: dict[str, Array], folder: Path) -> Array:
    openvino = pytest.importorskip("openvino")
    graph.save(folder / "model.onnx")
    core = openvino.Core()
    model = core.compile_model(
        core.read_model(folder / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    )
    return np.array(model(values)[0])


def difference(graph: Graph, expected: Array, values: dict[str, Array], folder: Path) -> float:
    return float(np.abs(in_openvino(graph, values, folder) - expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_as_many_heads_as_queries_are_computed_correctly(form: str, tmp_path: Path) -> None:
    graph = attention(form, 4, 4)
    values = inputs(graph)
    expected = compute(graph, values)
    plain = difference(graph, expected, values, tmp_path)
    assert apply(ShieldMoves(), graph).fired == (2 if form == "both" else 1)
    assert np.array_equal(compute(graph, values), expected)
    assert difference(graph, expected, values, tmp_path) < 1e-4
    if form == "queries":
        assert plain > 0.1, "OpenVINO computes it correctly as it is: the pass is no longer needed"


@pytest.mark.parametrize(("heads", "queries"), [(4, 9), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_other_numbers_of_heads_stay(form: str, heads: int, queries: int, tmp_path: Path) -> None:
    graph = attention(form, heads, queries)
    values = inputs(graph)
    expected = compute(graph, values)
    assert apply(ShieldMoves(), graph).fired == 0
    assert difference(graph, expected, values, tmp_path) < 1e-4


def test_a_batch_that_varies_is_computed_correctly_as_it_is(tmp_path: Path) -> None:
    graph = attention("both", 4, 4, batch="batch")
    values = inputs(graph)
    expected = compute(graph, values)
    assert apply(ShieldMoves(), graph).fired == 0
    assert difference(graph, expected, values, tmp_path) < 1e-4


def test_keys_values_and_other_products_stay() -> None:
    graph = parsed(
        '<ir_version: 9, opset_import: ["" : 20]> vit (float[2, 4, 4, 8] x, float[2, 4, 8, 4] w) => (float y) {'
        " a = Transpose<perm = [0, 2, 1, 3]>(x) b = MatMul(w, a) c = Softmax<axis = -1>(x)"
        " d = Transpose<perm = [0, 2, 1, 3]>(c) y = Add(b, w) z = Relu(d) }"
    )
    assert apply(ShieldMoves(), graph).fired == 0
