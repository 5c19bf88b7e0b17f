"""The linear that was made hard to quantize is the one that costs most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.graphs import dynamo, images, raised, redrawn, run
from tests.two_stages import NearTies
from vitdeploy import precision as precisions
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.choice import Choice
from vitdeploy.calibrate.search import Judge
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import LayerSensitivity
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Linear
from vitdeploy.precision import LinearPrecision
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration
from vitdeploy.quantize.sensitivity import measure_linears
from vitdeploy.recipe import PrecisionSpec, TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import find

QDQ = Dialect(20, "primitives")
INTEGER = Dialect(20, "multihead", "integer")
BATCHES = [images(1, seed) for seed in range(8)]
CALIBRATION = Calibration(lambda: iter(BATCHES), len(BATCHES), len(BATCHES), "test", "digest")


def calibrated(model: bytes) -> CalibratedGraph:
    graph, structure, _ = raised(model)
    return CalibratedGraph(graph, structure, CALIBRATION, Silent())


def sensitivity(
    graph: CalibratedGraph, spec: PrecisionSpec, count: int, agreement: Any = None, dialect: Dialect = QDQ
) -> tuple[tuple[LayerSensitivity, ...], Choice]:
    precision = precisions.find(spec)
    assert isinstance(precision, LinearPrecision)
    return precision.measure_sensitivity(graph, dialect, count, agreement)


@pytest.fixture(scope="module")
def hostile(vit: Any) -> bytes:
    """Two channels in front of block 1's first linear are a hundred times as large: the same function."""
    twin = copy.deepcopy(vit)
    norm, linear = twin.blocks[1].norm2, twin.blocks[1].mlp.fc1
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias):
            tensor[:2] *= 100
        linear.weight[:, :2] /= 100
    return dynamo(twin, images(1))


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic"])
def test_the_hostile_linear_is_the_worst_until_outliers_migrate(kind: Any, hostile: bytes) -> None:
    graph = calibrated(hostile)
    off, choice = sensitivity(graph, PrecisionSpec(kind=kind, smooth_alpha="off"), 8, dialect=INTEGER)
    assert choice.alpha is None
    assert off[0].name == "blocks.1.mlp.fc1"
    assert [layer.output_sqnr_db for layer in off] == sorted(layer.output_sqnr_db for layer in off)
    on, _ = sensitivity(graph, PrecisionSpec(kind=kind, smooth_alpha=0.5), 8, dialect=INTEGER)
    before, after = (next(x for x in found if x.name == off[0].name) for found in (off, on))
    assert after.output_sqnr_db > before.output_sqnr_db + 6
    assert after.sqnr_db > before.sqnr_db + 6


def test_every_linear_is_listed_with_its_work(exported: Callable[[str], bytes]) -> None:
    found, _ = sensitivity(calibrated(exported("dynamo")), PrecisionSpec(kind="int8", keep=("head",)), 3)
    by_name = {layer.name: layer for layer in found}
    assert len(by_name) == 9  # what is kept in float is told too, all but the patch embedding
    assert (by_name["blocks.0.attn.qkv"].role, by_name["blocks.0.attn.qkv"].block) == ("qkv", 0)
    assert by_name["blocks.0.attn.qkv"].macs == 17 * 32 * 96
    assert by_name["head"].macs == 32 * 10
    assert all(layer.agreement is None for layer in found)


def test_the_loss_matches_a_graph_with_only_that_linear_quantized(exported: Callable[[str], bytes]) -> None:
    made = calibrated(exported("dynamo"))
    spec = PrecisionSpec(kind="int8", smooth_alpha="off")
    layers, choice = sensitivity(made, spec, 8)
    others = tuple(linear.name for linear in made.structure.linears if linear.name not in ("patch_embed.proj", "head"))
    alone = precisions.find(replace(spec, keep=others)).lower(made, QDQ).graph
    if not choice.correct_bias and choice.ranges == "minmax":
        expected = Judge(made.graph, CALIBRATION).sqnr_db(alone)
        found = next(layer for layer in layers if layer.name == "head")
        assert found.output_sqnr_db == pytest.approx(expected, abs=0.1)
        assert found.sqnr_db == pytest.approx(expected, abs=0.1)  # it is the last


def test_agreement_is_the_tasks(exported: Callable[[str], bytes]) -> None:
    made = calibrated(exported("dynamo"))
    task = find(TaskSpec(kind="classification"))
    layers, _ = sensitivity(made, PrecisionSpec(kind="int8"), 8, task.compare_outputs)
    assert all(layer.agreement is not None and 0 <= layer.agreement <= 1 for layer in layers)
    assert max(layer.agreement or 0 for layer in layers) == 1
    broken, linear = _with_a_broken_head(made)
    [worst] = measure_linears(made.graph, broken, [linear], BATCHES, agreement=task.compare_outputs)
    expected = np.mean([_best(run(made.graph, b)) == _best(run(broken, b)) for b in BATCHES])
    assert worst.agreement == pytest.approx(expected)
    assert expected < 1


def _best(outputs: dict[str, Array]) -> int:
    return int(outputs["output_0"].argmax())


def _with_a_broken_head(made: CalibratedGraph) -> tuple[Graph, Linear]:
    broken = Graph(made.graph.model.clone())
    linear = next(one for one in made.structure.linears if one.role == "head")
    node = next(n for n in broken.nodes if n.name == linear.nodes[0])
    rolled = np.roll(np.asarray(node.inputs[1].const_value.numpy()), 1, axis=1)
    node.replace_input_with(1, broken.initializer(rolled, "rolled"))
    return broken, linear


def test_a_dynamic_batch_counts_the_work_of_one_image(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo-batch"))
    pairs = [images(2, seed) for seed in range(3)]
    calibration = Calibration(lambda: iter(pairs), 3, 6, "test", "digest")
    made = CalibratedGraph(graph, structure, calibration, Silent())
    layers, _ = sensitivity(made, PrecisionSpec(kind="int8", smooth_alpha="off"), 4)
    found = {layer.name: layer.macs for layer in layers}
    assert found["blocks.1.mlp.fc1"] == 17 * 32 * 128


def test_without_images_it_is_refused(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    with pytest.raises(QuantizeError, match="need calibration images"):
        sensitivity(CalibratedGraph(graph, structure, None, Silent()), PrecisionSpec(kind="int8"), 8)
    with pytest.raises(QuantizeError, match="no calibration image"):
        measure_linears(graph, graph, [structure.linears[-1]], iter(()))


def test_the_choice_of_lowering_is_not_searched_again(
    exported: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, spec = calibrated(exported("dynamo")), PrecisionSpec(kind="int8")
    record = precisions.find(spec).lower(made, QDQ).record
    assert record is not None
    monkeypatch.setattr(Judge, "sqnr_db", lambda *_: pytest.fail("searched again"))
    alpha = sensitivity(made, spec, 2)[1].alpha
    assert alpha == (record.migration.alpha if record.migration else None)


def test_int8_and_int8_bf16_share_one_search(exported: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    made = calibrated(exported("dynamo"))
    first = precisions.find(PrecisionSpec(kind="int8")).lower(made, QDQ)
    monkeypatch.setattr(Judge, "sqnr_db", lambda *_: pytest.fail("searched again"))
    second = precisions.find(PrecisionSpec(kind="int8-bf16")).lower(made, QDQ)
    assert (first.record, first.placement) == (second.record, second.placement)


def test_layers_survive_their_json() -> None:
    layer = LayerSensitivity(
        name="a", role="qkv", block=None, sqnr_db=-200.0, output_sqnr_db=40.0, agreement=None, macs=1
    )
    assert LayerSensitivity.model_validate_json(layer.model_dump_json()) == layer


class Unnamed(NearTies):
    """The detector with a tuple as its output."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(super().forward(x).values())


def test_rows_that_change_places_are_no_noise_of_a_linear() -> None:
    """All tokens of this detector are selected, in the order of scores that differ in their last bits only."""
    batches = [np.random.default_rng(seed).standard_normal((1, 3, 64, 64)).astype(np.float32) for seed in range(4)]
    graph, structure, _ = raised(dynamo(Unnamed().eval(), batches[0]))
    calibration = Calibration(lambda: iter(batches), len(batches), len(batches), "test", "digest")
    found, _ = sensitivity(
        CalibratedGraph(graph, structure, calibration, Silent()), PrecisionSpec(kind="int8", smooth_alpha="off"), 4
    )
    by_name = {layer.name: layer for layer in found}
    assert by_name["score"].output_sqnr_db > 100  # by position 14 dB: rows with nothing in common
    for name in ("qkv", "classes", "boxes"):  # behind the selection
        assert 20 < by_name[name].output_sqnr_db < 80, by_name[name]


def test_the_selection_is_given_and_the_agreement_sees_the_models_own_outputs_only() -> None:
    batches = [np.random.default_rng(seed).standard_normal((1, 3, 64, 64)).astype(np.float32) for seed in range(2)]
    graph, structure, _ = raised(dynamo(redrawn(Unnamed()).eval(), batches[0]))
    calibration = Calibration(lambda: iter(batches), len(batches), len(batches), "test", "digest")
    names: set[tuple[str, ...]] = set()

    def agreement(reference: Mapping[str, Array], other: Mapping[str, Array]) -> Array:
        names.update((tuple(reference), tuple(other)))
        return np.ones(len(other["output_0"]))

    graphs = CalibratedGraph(graph, structure, calibration, Silent())
    found, _ = sensitivity(graphs, PrecisionSpec(kind="int8", smooth_alpha="off"), 2, agreement)
    assert names == {("output_0", "output_1")}
    assert {layer.agreement for layer in found} == {1.0}
