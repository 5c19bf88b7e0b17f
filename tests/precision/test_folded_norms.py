"""INT8 behind LayerNorms whose scale and bias are in the weights: OpenVINO then normalises and rounds in one kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.graphs import dynamo, images, raised, run, tiny_vit
from vitdeploy import passes
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph, array
from vitdeploy.graph.sqnr import Noise
from vitdeploy.graph.structure import Structure
from vitdeploy.passes import order
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration, Quantized
from vitdeploy.recipe import PrecisionSpec

BATCHES = [images(1, seed) for seed in range(8)]
CALIBRATION = Calibration(lambda: iter(BATCHES), len(BATCHES), len(BATCHES), "test", "digest")
APART = Dialect(20, "primitives", scales_norms_apart=True)
NORMS, BLOCKS = 5, 2


def vit(*, trained: bool = True) -> nn.Module:
    """A ViT with scales and biases of norms as training leaves them, or as it finds them."""
    torch.manual_seed(0)
    model = tiny_vit()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.fill_(0.0)
                if trained:
                    module.weight.uniform_(0.3, 1.7)
                    module.bias.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def graphs() -> tuple[Graph, Structure]:
    graph, structure, _ = raised(dynamo(vit(), images(1)))
    return graph, structure


def quantized(graphs: tuple[Graph, Structure], dialect: Dialect = APART, **spec: Any) -> Quantized:
    graph, structure = graphs
    return quantize(graph, structure, PrecisionSpec(kind="int8", **spec), dialect, CALIBRATION, Silent())


def scales(graph: Graph) -> list[bool]:
    """Whether each norm only normalises."""
    norms = [node for node in graph.nodes if node.op_type == "LayerNormalization"]
    return [bool((array(norm.inputs[1]) == 1).all()) and len(norm.inputs) == 2 for norm in norms]


def test_every_norm_is_folded_and_the_record_says_so(graphs: tuple[Graph, Structure]) -> None:
    found = quantized(graphs, smooth_alpha="norms")
    assert scales(found.graph) == [True] * NORMS
    assert not any(scales(graphs[0])), "the float graph is not changed"
    assert found.record is not None
    migration = found.record.migration
    assert migration is not None
    assert (migration.norms, migration.inputs, migration.alpha) == (NORMS, BLOCKS, 0.5)
    assert "scale and bias of 5 norms folded" in dict(found.record.rows())["migration"]


def test_norms_that_only_normalise_stay_so() -> None:
    """Migration would give them a scale again, and with it a second kernel."""
    graph, structure, _ = raised(dynamo(vit(trained=False), images(1)))
    found = quantized((graph, structure), smooth_alpha="norms")
    assert found.record is not None
    assert found.record.migration is not None
    assert (found.record.migration.norms, found.record.migration.inputs) == (NORMS, BLOCKS)
    for node in found.graph.nodes:
        if node.op_type == "LayerNormalization":
            assert (array(node.inputs[1]) == 1).all()
            assert len(node.inputs) == 2 or not array(node.inputs[2]).any()


def test_where_no_norm_folds_the_record_names_the_strength_alone(graphs: tuple[Graph, Structure]) -> None:
    graph, structure = Graph(graphs[0].model.clone()), graphs[1]
    norms = [node for node in graph.nodes if node.op_type == "LayerNormalization"]
    graph.model.graph.outputs.extend(norm.outputs[0] for norm in norms)  # they are read with scale and bias
    record = quantized((graph, structure), smooth_alpha="norms").record
    assert record is not None
    assert record.migration is not None
    assert (record.folded_norms, record.migration.norms, record.migration.alpha) == (False, 0, 0.5)
    assert {(step.norms, step.alpha) for step in record.tried} == {(False, 0.5)}


def test_numbers_stay_near_the_models(graphs: tuple[Graph, Structure]) -> None:
    noise, graph = Noise(), quantized(graphs, smooth_alpha="norms").graph
    for seed in range(3, 9):
        noise.add(run(graphs[0], images(1, seed))["output_0"], run(graph, images(1, seed))["output_0"])
    assert noise.sqnr_db > 20


def test_only_auto_folds_them(graphs: tuple[Graph, Structure]) -> None:
    """They cost a decibel or two on trained models: a named precision has the numbers that are nearest."""
    found = quantized(graphs).record
    assert found is not None
    assert not any(step.norms for step in found.tried)


def test_a_given_strength_is_not_replaced(graphs: tuple[Graph, Structure]) -> None:
    found = quantized(graphs, smooth_alpha=0.5).record
    assert found is not None
    assert found.migration is not None
    assert (found.migration.norms, found.migration.alpha) == (0, 0.5)


def test_nncf_refuses_it(graphs: tuple[Graph, Structure]) -> None:
    with pytest.raises(QuantizeError, match="NNCF does not fold norms"):
        quantized(graphs, smooth_alpha="norms", quantizer="nncf")


@pytest.mark.parametrize("smooth_alpha", [0.5, "norms"])
def test_openvino_then_rounds_in_the_kernel_that_normalises(
    graphs: tuple[Graph, Structure], smooth_alpha: Any, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    found = quantized(graphs, smooth_alpha=smooth_alpha)
    passes.run(order.lowering(APART), found.graph)
    found.graph.save(tmp_path / "model.onnx")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ordered_ops()]
    rounded = [
        one["outputPrecisions"].astype(str) in ("u8", "i8") for one in facts if one["layerType"].astype(str) == "MVN"
    ]
    assert len(rounded) == NORMS
    assert sum(rounded) == (2 * BLOCKS if smooth_alpha == "norms" else 0)  # the last norm is of the class token alone
    image = images(1, 3)
    expected = run(found.graph, image)["output_0"]
    assert np.abs(compiled(image)[0] - expected).max() < 0.1 * np.abs(expected).max()
