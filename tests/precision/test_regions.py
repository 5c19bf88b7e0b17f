"""What a detector keeps in float in INT8, in every form of it, and what changes that."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.detectors import Detector, Pooled
from tests.graphs import dynamo, parsed, redrawn
from vitdeploy import passes
from vitdeploy import precision as precisions
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.graph.dialect import Dialect, Int8AttentionKernel
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.regions import assign_regions
from vitdeploy.passes import order
from vitdeploy.precision import LinearPrecision
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration, Quantized
from vitdeploy.quantize.placement import FLOAT_IN_DETECTORS
from vitdeploy.quantize.sensitivity import sum_by_region
from vitdeploy.recipe import PrecisionSpec

BATCHES = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32) for seed in range(4)]
CALIBRATION = Calibration(lambda: iter(BATCHES), len(BATCHES), len(BATCHES), "test", "digest")
QDQ, INTEGER = Dialect(20, "primitives"), Dialect(20, "multihead", "integer")


@cache
def calibrated(kind: str) -> CalibratedGraph:
    module = Pooled() if kind == "classifier" else Detector(selects=True)
    graph = parsed(dynamo(redrawn(module).eval(), BATCHES[0]))
    passes.run([*order.raising(1), *order.folding()], graph)
    return CalibratedGraph(graph, assign_regions(graph, recognize(graph, {})), CALIBRATION, Silent())


def lower(model: str, dialect: Dialect = QDQ, **spec: Any) -> Quantized:
    precision = precisions.find(PrecisionSpec(smooth_alpha="off", **spec))
    return precision.lower(calibrated(model), dialect)


def regions_in_float(model: str, quantized: Quantized) -> set[str | None]:
    return {
        linear.region
        for linear in calibrated(model).structure.linears
        if linear.role != "patch" and not quantized.placement[linear.name].quantized
    }


@pytest.mark.parametrize(("kind", "dialect"), [("int8", QDQ), ("int8-dynamic", INTEGER), ("int8-dynamic", QDQ)])
def test_the_decoder_stays_in_float_where_activations_are_rounded(kind: str, dialect: Dialect) -> None:
    quantized = lower("detector", dialect, kind=kind)
    assert regions_in_float("detector", quantized) == set(FLOAT_IN_DETECTORS)
    rules = {quantized.placement[name].rule for name in ("score", "decoding.1.fc1", "classes")}
    assert rules == set(FLOAT_IN_DETECTORS.values())
    assert regions_in_float("detector", lower("detector", dialect, kind=kind, float_decoder=False)) == set()


@pytest.mark.parametrize("quantizer", ["own", "nncf"])
def test_attention_of_the_decoder_stays_in_float_too(quantizer: str) -> None:
    if quantizer == "nncf":
        pytest.importorskip("nncf")
        dialect, spec = Dialect(20, "primitives", partial_int8_attention=True), {"quantizer": "nncf"}
    else:
        kernel = Int8AttentionKernel(head_sizes=(), tokens=None, values_alone=True, unsigned_probabilities=True)
        dialect, spec = Dialect(20, "primitives", int8_attention=kernel), {"attention": True}
    sites = calibrated("detector").structure.attention
    for float_decoder in (True, False):
        quantized = lower("detector", dialect, kind="int8", float_decoder=float_decoder, **spec)
        in_float = {site.region for site in sites if not quantized.placement[site.name].quantized}
        assert in_float == ({"decoder"} if float_decoder else set())
        if float_decoder:
            rules = {quantized.placement[site.name].rule for site in sites if site.region == "decoder"}
            assert rules == {FLOAT_IN_DETECTORS["decoder"]}


def test_weights_alone_are_stored_in_few_bits_everywhere() -> None:
    assert regions_in_float("detector", lower("detector", kind="int4-weights")) == set()


def test_keep_takes_a_region() -> None:
    quantized = lower("detector", kind="int8", keep=("decoder",), float_decoder=False)
    assert regions_in_float("detector", quantized) == {"decoder"}
    assert quantized.placement["decoding.1.fc1"].rule == "keep: decoder"


def test_a_classifier_is_quantized_as_before() -> None:
    one, other = (lower("classifier", kind="int8", float_decoder=decoder) for decoder in (True, False))
    assert one.placement == other.placement
    assert regions_in_float("classifier", one) == set()


def test_sensitivity_by_region_adds_up_the_noise_of_its_linears() -> None:
    precision = precisions.find(PrecisionSpec(kind="int8", smooth_alpha="off"))
    assert isinstance(precision, LinearPrecision)
    layers, _ = precision.measure_sensitivity(calibrated("detector"), QDQ, 4)
    sums = {region.region: region for region in sum_by_region(layers)}
    assert set(sums) == {"backbone", *FLOAT_IN_DETECTORS}
    assert sum(region.linears for region in sums.values()) == len(layers)
    backbone = [layer for layer in layers if layer.region == "backbone"]
    noise = sum(10 ** (-layer.output_sqnr_db / 10) for layer in backbone)
    assert sums["backbone"].output_sqnr_db == pytest.approx(-10 * np.log10(noise))
    assert sums["backbone"].macs == sum(layer.macs for layer in backbone)
