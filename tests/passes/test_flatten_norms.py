"""OpenVINO has one kernel for a LayerNorm of a list of tokens, and several for one of a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.flatten_norms import FlattenNorms

GRID = "2, 6, 5, 16"


def norm(shape: str = GRID, *, arguments: str = "x, scale, shift", axis: int = -1) -> Graph:
    channels = (5, 16) if axis == -2 else (16,)
    rng = np.random.default_rng(0)
    return parsed(
        f'<ir_version: 9, opset_import: ["" : 20]> vit (float[{shape}] x) => (float y) {{'
        f" n = LayerNormalization<axis = {axis}, epsilon = 0.01>({arguments}) y = Gelu(n) }}",
        scale=rng.standard_normal(channels).astype(np.float32), shift=rng.standard_normal(channels).astype(np.float32),
    )  # fmt: skip


def kernels(graph: Graph, folder: Path) -> list[str]:
    openvino = pytest.importorskip("openvino")
    graph.save(folder / "model.onnx")
    core = openvino.Core()
    model = core.compile_model(core.read_model(folder / "model.onnx"), "CPU")
    layers = [op.get_rt_info()["layerType"].astype(str) for op in model.get_runtime_model().get_ordered_ops()]
    return [layer for layer in layers if layer in ("MVN", "Reduce", "RMS", "Subgraph")]


@pytest.mark.parametrize("arguments", ["x, scale, shift", "x, scale"])
def test_the_norm_of_a_grid_becomes_one_kernel(arguments: str, tmp_path: Path) -> None:
    graph = norm(arguments=arguments)
    x = np.random.default_rng(1).standard_normal((2, 6, 5, 16)).astype(np.float32)
    expected = run(graph, x)["y"]
    assert "RMS" in kernels(graph, tmp_path), "it is one kernel as it is: the pass is no longer needed"
    assert apply(FlattenNorms(), graph).fired == 1
    assert kernels(graph, tmp_path) == ["MVN", "Subgraph"]
    assert np.allclose(run(graph, x)["y"], expected, atol=1e-5)


@pytest.mark.parametrize("shape", ["batch, 6, 5, 16", "2, height, 5, 16", "batch, height, width, 16"])
def test_sizes_may_vary(shape: str, tmp_path: Path) -> None:
    graph = norm(shape)
    x = np.random.default_rng(1).standard_normal((2, 6, 5, 16)).astype(np.float32)
    expected = run(graph, x)["y"]
    assert apply(FlattenNorms(), graph).fired == 1
    assert kernels(graph, tmp_path).count("MVN") == 1
    assert np.allclose(run(graph, x)["y"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "graph",
    [norm("2, 30, 16"), norm(axis=-2)],
    ids=["a list", "more than the last axis"],
)
def test_others_stay(graph: Graph) -> None:
    before = types(graph)
    assert apply(FlattenNorms(), graph).fired == 0
    assert types(graph) == before


def test_a_computed_scale_stays() -> None:
    graph = parsed(
        '<ir_version: 9, opset_import: ["" : 20]> vit (float[2, 6, 5, 16] x, float[16] given) => (float y) {'
        " y = LayerNormalization<axis = -1>(x, given) }"
    )
    assert apply(FlattenNorms(), graph).fired == 0
