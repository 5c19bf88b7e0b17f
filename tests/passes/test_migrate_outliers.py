"""Outliers move into the weights, and the model's numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graphs import apply, images, parsed, raised, run
from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.passes.migrate_outliers import MigrateOutliers
from vitdeploy.session import Array

C = 8
RNG = np.random.default_rng(0)


def maxima(graph: Graph) -> dict[str, Array]:
    largest = {}
    for node in graph.nodes:
        x = operand(node, 0)
        if node.op_type == "MatMul" and (shape := dims(x)) is not None and shape[-1] is not None:
            largest[x.name or ""] = np.exp(2 * RNG.standard_normal(shape[-1]))
    return largest


def block(body: str, **more: Array) -> Graph:
    draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)  # noqa: E731
    return parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float[2,5,{C}] x) => (float y) {{ {body} }}',
        g=draw(C), b=draw(C), w=draw(C, C), u=draw(C, C), c=draw(C), **more,
    )  # fmt: skip


X = RNG.standard_normal((2, 5, C)).astype(np.float32)
NORM = "n = LayerNormalization(x, g, b)"


@pytest.mark.parametrize("kind", ["dynamo", "legacy-17", "legacy-batch"])
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_the_whole_tiny_vit_keeps_its_numbers(kind: str, alpha: float, exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported(kind))
    x = images(1)
    reference = run(graph, x)["output_0"]
    migrate = MigrateOutliers(maxima=maxima(graph), alpha=alpha)
    factors = migrate.factors(graph)
    before = {n.name: n.inputs[1] for n in graph.nodes if n.op_type == "MatMul"}
    assert apply(migrate, graph).fired == 7  # two norms and the values of two blocks, and the last norm
    assert len(factors) == 7
    assert sum(n.inputs[1] is not before[n.name] for n in graph.nodes if n.name in before) == 7
    assert np.abs(run(graph, x)["output_0"] - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("alpha", [0.5, 0.75])
def test_the_factors_are_what_the_inputs_are_divided_by(alpha: float) -> None:
    graph = block(f"{NORM} y = MatMul(n, w)")
    graph.model.graph.outputs.append(next(n for n in graph.nodes).outputs[0])
    migrate = MigrateOutliers(maxima={"n": np.full(C, 4.0)}, alpha=alpha)
    assert "the output reads it" in next(iter(apply(migrate, graph).refused.values()))
    graph = block(f"{NORM} y = MatMul(n, w)")
    (factor,) = migrate.factors(graph).values()
    weight = next(n for n in graph.nodes if n.op_type == "MatMul").inputs[1].const_value.numpy()
    expected = 4**alpha / np.abs(weight).max(axis=1) ** (1 - alpha)  # SmoothQuant, equation 4
    np.testing.assert_allclose(factor, expected, rtol=1e-6)
    before = run(graph, X)["y"]
    apply(migrate, graph)
    scale = next(n for n in graph.nodes).inputs[1].const_value.numpy()
    graph.model.graph.outputs[:] = [next(n for n in graph.nodes).outputs[0]]
    original = block(f"{NORM} y = MatMul(n, w)")
    assert scale.shape == factor.shape
    assert before.shape == (2, 5, C)
    assert original is not graph


def test_two_readers_share_one_factor() -> None:
    graph = block(f"{NORM} q = MatMul(n, w) k = MatMul(n, u) y = Add(q, k)")
    reference = run(graph, X)["y"]
    assert apply(MigrateOutliers(maxima=maxima(graph), alpha=0.5), graph).fired == 1
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{NORM} m = MatMul(n, w) y = Add(m, n)", "Add.2 reads it, which is not a linear"),
        (f"{NORM} y = MatMul(w, n)", "MatMul.1 reads it, which is not a linear"),
        ("n = LayerNormalization(x, c2) y = MatMul(n, w)", "it has no constant scale for each channel"),
    ],
)
def test_a_reader_that_is_no_linear_stops_it(body: str, reason: str) -> None:
    graph = block(body.replace("n = LayerNormalization(x, c2)", "c2 = Abs(g) n = LayerNormalization(x, c2)"))
    result = apply(MigrateOutliers(maxima=maxima(graph), alpha=0.5), graph)
    assert (result.fired, list(result.refused.values())) == (0, [reason])


@pytest.mark.parametrize(("keys", "fired"), [("q", 1), ("v", 0)])
def test_values_that_are_keys_too_are_left_alone(keys: str, fired: int) -> None:
    heads = "{0}2 = Reshape({1}, heads) {0} = Transpose<perm = [0, 2, 1, 3]>({0}2)"
    graph = block(
        f"values = MatMul(x, w) {heads.format('q', 'x')} {heads.format('v', 'values')}"
        f" o = Attention<scale = 0.5>(q, {keys}, v) t = Transpose<perm = [0, 2, 1, 3]>(o) m = Reshape(t, merged)"
        " y = MatMul(m, u)",
        heads=np.array([2, 5, 2, C // 2]), merged=np.array([2, 5, C]),
    )  # fmt: skip
    reference = run(graph, X)["y"]
    result = apply(MigrateOutliers(maxima=maxima(graph), alpha=0.5), graph)
    assert result.fired == fired
    assert list(result.refused.values()) == ([] if fired else ["another node reads its values too"])
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-5 * np.abs(reference).max()


def test_dead_channels_have_no_factor_of_their_own() -> None:
    graph = block(f"{NORM} y = MatMul(n, w)")
    magnitudes = np.ones(C)
    magnitudes[3] = 0
    (factor,) = MigrateOutliers(maxima={"n": magnitudes}, alpha=0.5).factors(graph).values()
    assert np.isfinite(factor).all()
    assert factor[3] == pytest.approx(np.median(np.delete(factor, 3)))
