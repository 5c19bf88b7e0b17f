"""NNCF as the quantizer: it decides scales and rounding, vitdeploy where INT8 is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import dynamo, expected, images, raised, run, tiny_vit, types
from vitdeploy import passes, precision
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph, array, producer
from vitdeploy.passes import order
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration, Quantized, nncf_process
from vitdeploy.quantize.nncf_pairs import has_pair
from vitdeploy.quantize.nncf_process import StaticSettings, WeightSettings, run_nncf
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not nncf_process.is_installed(), reason="NNCF is not installed: pip install 'vitdeploy[quantize]'"
    ),
]

CPU = Dialect(20, "primitives", partial_int8_attention=True)
MULTIHEAD = Dialect(20, "multihead", "integer", int8_weight_group=16)
SYMMETRIC = Dialect(20, "primitives", activation_codes="int8")
BATCHES = [images(1, seed) for seed in range(20)]
Exported = Callable[[str], bytes]


def calibration(batches: list[Array] = BATCHES) -> Calibration:
    return Calibration(lambda: iter(batches), len(batches), len(batches), "test", "digest")


@pytest.fixture(scope="module")
def calibrated(exported: Exported) -> CalibratedGraph:
    """One for all tests of this module: NNCF runs once for each set of settings."""
    graph, structure, _ = raised(exported("dynamo"))
    passes.run(order.folding(), graph)
    return CalibratedGraph(graph, structure, calibration(), Silent())


@pytest.fixture(scope="module")
def quantized(calibrated: CalibratedGraph) -> Callable[..., Quantized]:
    @cache
    def make(kind: str, dialect: str = "CPU", **options: Any) -> Quantized:
        spec = PrecisionSpec(kind=kind, quantizer="nncf", **options)
        return precision.find(spec).lower(calibrated, globals()[dialect])

    return make


def pairs(graph: Graph) -> Iterator[ir.Node]:
    return (node for node in graph.nodes if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize("dialect", ["CPU", "MULTIHEAD", "SYMMETRIC"])
def test_int8_is_where_the_rules_allow_it(
    dialect: str, quantized: Callable[..., Quantized], calibrated: CalibratedGraph
) -> None:
    made = quantized("int8", dialect, smooth_alpha=0.5)
    assert made.record is not None
    assert (made.record.quantizer, made.record.quantized) == ("nncf", 9)
    assert made.record.migration is not None
    assert (made.record.migration.alpha, made.record.migration.inputs > 0) == (0.5, True)
    int8 = {name for name, place in made.placement.items() if place.quantized}
    linears = {linear.name: linear.role for linear in calibrated.structure.linears}
    assert {linears[name] for name in int8 if name in linears} == {"qkv", "proj", "fc1", "fc2", "head"}
    sites = {site.name for site in calibrated.structure.attention}
    assert int8 & sites == (sites if dialect == "CPU" else set())
    assert types(made.graph).count("Attention") == (0 if dialect == "CPU" else 2)
    codes = {array(node.inputs[2]).dtype for node in pairs(made.graph) if _feeds_linear(node)}
    assert codes == {np.dtype("int8" if dialect == "SYMMETRIC" else "uint8")}
    if dialect == "SYMMETRIC":
        assert not any(array(node.inputs[2]).any() for node in pairs(made.graph))


def _feeds_linear(quantize: ir.Node) -> bool:
    (dequantize,) = [use.node for use in quantize.outputs[0].uses()]
    readers = [use.node for use in dequantize.outputs[0].uses()]
    return any(node.op_type == "MatMul" and "/Attention" not in (node.name or "") for node in readers)


@pytest.mark.parametrize("dialect", ["CPU", "MULTIHEAD", "SYMMETRIC"])
def test_the_numbers_stay_near_the_models(dialect: str, quantized: Callable[..., Quantized], vit: Any) -> None:
    x = images(1, 99)
    reference = expected(vit, x)["output_0"]
    made = quantized("int8", dialect, smooth_alpha=0.5)
    error = np.abs(run(made.graph, x)["output_0"] - reference).max()
    assert 0 < error < 0.05 * np.abs(reference).max()
    assert made.record is not None
    assert (made.record.output_sqnr_db or 0) > 30


def test_the_strength_of_smoothquant_is_searched(quantized: Callable[..., Quantized]) -> None:
    record = quantized("int8", "MULTIHEAD").record
    assert record is not None
    scores = {step.alpha: step.output_sqnr_db or 0.0 for step in record.tried}
    assert list(scores) == [0.95, 0.5, None]
    chosen = record.migration.alpha if record.migration is not None else None
    assert scores[chosen] >= max(scores.values()) - 0.1 * len(scores)


def test_without_smoothquant_nothing_is_multiplied(quantized: Callable[..., Quantized]) -> None:
    made = quantized("int8", "MULTIHEAD", smooth_alpha="off")
    assert made.record is not None
    assert made.record.migration is None
    assert not any("smooth_quant" in (node.name or "") for node in made.graph.nodes)


def test_bfloat16_around_keeps_attention_out_and_needs_no_second_run(
    quantized: Callable[..., Quantized], calibrated: CalibratedGraph
) -> None:
    int8 = quantized("int8", "CPU", smooth_alpha=0.5)
    count = len(calibrated.nncf_runs)
    mixed = quantized("int8-bf16", "CPU", smooth_alpha=0.5)
    assert len(calibrated.nncf_runs) == count
    products = [node for node in mixed.graph.nodes if node.op_type == "MatMul" and "/Attention/" in (node.name or "")]
    assert len(products) == 4
    assert not any(has_pair(node, index) for node in products for index in (0, 1))
    assert len(list(pairs(mixed.graph))) == len(list(pairs(int8.graph))) - 4  # q and k of two blocks
    assert mixed.placement["blocks.0.attn"].precision == "float"


def test_keep_leaves_linears_in_float(quantized: Callable[..., Quantized]) -> None:
    made = quantized("int8", "MULTIHEAD", smooth_alpha="off", keep=("blocks.0.*", "head"))
    assert made.placement["head"].rule == "keep: head"
    assert made.record is not None
    assert made.record.quantized == 4
    products = {node.name: node for node in made.graph.nodes if node.op_type == "MatMul"}
    assert not any(has_pair(node, i) for name, node in products.items() if "blocks.0" in str(name) for i in (0, 1))
    assert has_pair(products["blocks.1.mlp.fc2/MatMul"], 0)


def test_the_same_images_give_the_same_graph(calibrated: CalibratedGraph) -> None:
    settings = StaticSettings(ignored=(), alpha=0.5, symmetric=False, half_weights=True)
    first, second = (run_nncf(calibrated.graph, [settings], BATCHES[:4])[0] for _ in range(2))
    assert ir.to_proto(first.model).SerializeToString() == ir.to_proto(second.model).SerializeToString()
    codes = [array(n.inputs[0]) for n in first.nodes if n.op_type == "DequantizeLinear" and _is_weight(n)]
    assert max(np.abs(c.astype(int)).max() for c in codes if c.ndim == 2) == 64  # sums of products must not saturate


def _is_weight(node: ir.Node) -> bool:
    return producer(node.inputs[0]) is None


def test_a_batch_that_varies(vit: Any) -> None:
    graph, structure, _ = raised(dynamo(tiny_vit(), images(2), dynamic=True))
    pictures = [images(2, seed) for seed in range(4)]
    calibrated = CalibratedGraph(graph, structure, calibration(pictures), Silent())
    spec = PrecisionSpec(kind="int8", quantizer="nncf", smooth_alpha=0.5)
    made = precision.find(spec).lower(calibrated, CPU)
    for size in (1, 3):
        x = images(size, 50)
        reference = expected(vit, x)["output_0"]
        assert np.abs(run(made.graph, x)["output_0"] - reference).max() < 0.05 * np.abs(reference).max()


@pytest.mark.parametrize("kind", ["int8-weights", "int4-weights"])
def test_weights_only(kind: str, quantized: Callable[..., Quantized], vit: Any) -> None:
    made = quantized(kind, "MULTIHEAD", group=32)
    weights = [n for n in made.graph.nodes if n.op_type == "DequantizeLinear"]
    assert made.record is not None
    assert len(weights) == 9 == made.record.quantized
    assert not list(pairs(made.graph))
    stored = "INT8" if kind == "int8-weights" else "UINT4"
    assert {n.inputs[0].dtype for n in weights if n.inputs[0] is not None} == {ir.DataType[stored]}
    assert {n.attributes.get_int("block_size", 0) for n in weights} == {16 if kind == "int8-weights" else 32}
    x = images(1, 99)
    reference = expected(vit, x)["output_0"]
    error = np.abs(run(made.graph, x)["output_0"] - reference).max() / np.abs(reference).max()
    assert 0 < error < (0.02 if kind == "int8-weights" else 0.3)


def test_images_make_four_bits_more_exact(quantized: Callable[..., Quantized], calibrated: CalibratedGraph) -> None:
    blind = CalibratedGraph(calibrated.graph, calibrated.structure, None, Silent())
    spec = PrecisionSpec(kind="int4-weights", quantizer="nncf", group=32)
    without = precision.find(spec).lower(blind, MULTIHEAD)
    assert without.record is not None
    assert (without.record.rounding, without.record.output_sqnr_db) == ("nearest", None)
    record = quantized("int4-weights", "MULTIHEAD", group=32).record
    assert record is not None
    assert (record.output_sqnr_db or 0) > calibrated.judge.sqnr_db(without.graph)


def test_a_graph_that_nncf_fails_on_is_one_line(calibrated: CalibratedGraph) -> None:
    settings = StaticSettings(ignored=(), alpha=None, symmetric=False, half_weights=False)
    with pytest.raises(QuantizeError, match=r"^NNCF 3\.\d+\.\d+ fails on this graph: \w+: [^\n]+$") as error:
        run_nncf(calibrated.graph, [settings], [np.zeros((1, 3, 32, 48), np.float32)])
    assert error.value.fix == "Use --quantizer own."


def test_a_run_out_of_memory_is_one_line(calibrated: CalibratedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_MAX_TRIAL_BYTES", "1")
    settings = WeightSettings(ignored=(), bits=8, group=-1)
    with pytest.raises(QuantizeError, match=r"^NNCF on this graph "):
        run_nncf(calibrated.graph, [settings], ())
