"""The loss that each linear causes when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import LayerSensitivity, RegionSensitivity
from vitdeploy.graph.model import Graph
from vitdeploy.graph.sqnr import Noise, decibels, mean_sqnr_db
from vitdeploy.graph.structure import Linear
from vitdeploy.quantize.switched import LinearError, SwitchedGraph
from vitdeploy.session import Array

Agreement = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
"""Compares the outputs of two models for one batch: agreement per sample, (n,), from 0 to 1, as `Task.agreement`."""


def measure_linears(
    graph: Graph,
    quantized: Graph,
    linears: Sequence[Linear],
    batches: Iterable[Array],
    *,
    agreement: Agreement | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[LayerSensitivity, ...]:
    """Quantize each linear alone, and measure the errors of its output and the model's; worst first.

    Memory is that of the graph with its weights in both precisions, whatever the number of images.

    Args:
        graph: in float32, with outliers migrated if that is wanted; not changed.
        quantized: the same graph with these linears quantized, by any writer of this package; not changed.
        linears: with one MatMul each.
        batches: NCHW, as the graph takes them.
        agreement: of the model's task; None leaves it out.
        advance: called with 1 after each batch.

    Raises:
        QuantizeError: there is no batch, or the model's outputs are not finite in float32.
    """
    measurements = {linear.name: _Measurement() for linear in linears}
    images = 0
    with SwitchedGraph(graph, quantized, linears) as model:
        for batch in batches:
            reference, _ = model.run(batch)
            if not all(np.isfinite(a).all() for a in reference.values()):
                raise QuantizeError("the float32 model gives NaN or infinity", fix="Check the images and the weights.")
            for name, measurement in measurements.items():
                outputs, errors = model.run(batch, {name})
                measurement.add(reference, outputs, errors[name], agreement)
            images += len(batch)
            advance(1)
    if not images:
        raise QuantizeError("there is no calibration image", fix="Give --calibration a folder with images.")
    layers = [measurements[linear.name].summarize(linear, images) for linear in linears]
    return tuple(sorted(layers, key=lambda layer: (layer.output_sqnr_db, layer.sqnr_db)))


def sum_by_region(layers: Iterable[LayerSensitivity]) -> tuple[RegionSensitivity, ...]:
    """Return the damage of each region, the most damaging first. Linears without a region are left out."""
    groups: dict[str, list[LayerSensitivity]] = {}
    for layer in layers:
        if layer.region is not None:
            groups.setdefault(layer.region, []).append(layer)
    regions = [
        RegionSensitivity(
            region=region,
            linears=len(group),
            output_sqnr_db=decibels(1.0, sum(10 ** (-layer.output_sqnr_db / 10) for layer in group)),
            macs=sum(layer.macs for layer in group),
        )
        for region, group in groups.items()
    ]
    return tuple(sorted(regions, key=lambda region: region.output_sqnr_db))


class _Measurement:
    """The errors of one linear over the batches so far."""

    def __init__(self) -> None:
        self._outputs: dict[str, Noise] = {}
        self._noise = self._signal = 0.0
        self._numbers = 0
        self._agreements: list[Array] = []

    def add(
        self,
        reference: Mapping[str, Array],
        outputs: Mapping[str, Array],
        error: LinearError,
        agreement: Agreement | None,
    ) -> None:
        self._noise, self._signal = self._noise + error.noise, self._signal + error.signal
        self._numbers += error.numbers
        for name, value in reference.items():
            self._outputs.setdefault(name, Noise()).add(value, outputs[name])
        if agreement is not None:
            self._agreements.append(agreement(reference, outputs))

    def summarize(self, linear: Linear, images: int) -> LayerSensitivity:
        depth, width = linear.size or linear.weight[:2]
        return LayerSensitivity(
            name=linear.name,
            role=linear.role,
            block=linear.block,
            sqnr_db=decibels(self._signal, self._noise),
            output_sqnr_db=mean_sqnr_db(self._outputs.values()),
            agreement=float(np.concatenate(self._agreements).mean()) if self._agreements else None,
            macs=self._numbers // width * depth * width // images,
            region=linear.region,
        )
