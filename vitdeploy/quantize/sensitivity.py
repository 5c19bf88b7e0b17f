"""The loss that each linear causes when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import LayerSensitivity, RegionSensitivity
from vitdeploy.graph.forced_selection import (
    drop_masked,
    expose_selections,
    force_selections,
    indices_of,
    list_selections,
    score_outputs,
)
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.sqnr import Noise, decibels, mean_sqnr_db
from vitdeploy.graph.structure import Linear
from vitdeploy.quantize.switched import LinearError, SwitchedGraph
from vitdeploy.session import Array, Closing, Inputs, as_feeds, images_of

Agreement = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
"""Compares the outputs of two models for one batch: agreement per sample, (n,), from 0 to 1, as `Task.agreement`."""


def measure_linears(
    graph: Graph,
    quantized: Graph,
    linears: Sequence[Linear],
    batches: Iterable[Inputs],
    *,
    agreement: Agreement | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[LayerSensitivity, ...]:
    """Quantize each linear alone, and measure the errors of its output and the model's; worst first.

    Memory is that of the graph with its weights in both precisions, whatever the number of images. Where the model
    selects rows by score, every linear is measured on the rows that the float32 graph selects, and the scores count as
    an output: rows in other places would hide what the rounding costs.

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
    with _Selections(graph) as selections, SwitchedGraph(selections.force(graph), quantized, linears) as model:
        for batch in batches:
            rows = selections.select(batch)
            reference, _ = model.run(batch, (), rows)
            if not all(np.isfinite(a).all() for a in reference.values()):
                raise QuantizeError("the float32 model gives NaN or infinity", fix="Check the images and the weights.")
            for name, measurement in measurements.items():
                outputs, errors = model.run(batch, {name}, rows)
                measurement.add(selections.pair(reference, outputs), errors[name])
                if agreement is not None:
                    measurement.agreements.append(agreement(*map(selections.drop_scores, (reference, outputs))))
            images += len(images_of(batch))
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


class _Selections(Closing):
    """The rows that the float32 graph selects by score. Most models select none."""

    def __init__(self, graph: Graph) -> None:
        self._names = list_selections(graph)
        self._scores = score_outputs(graph, self._names)
        self._feed = graph.model.graph.inputs[0].name or ""
        self._session: OnnxSession | None = None
        if self._names:
            with scratch_folder("selections") as folder:
                path = folder / "float32.onnx"
                expose_selections(graph, self._names).save(path)
                self._session = OnnxSession(path, lean=True)

    def force(self, graph: Graph) -> Graph:
        """Return the graph with what it selects as inputs, and its scores as outputs."""
        return force_selections(graph, self._names) if self._names else graph

    def select(self, batch: Inputs) -> dict[str, Array]:
        """Return the values of these inputs."""
        if self._session is None:
            return {}
        outputs = self._session.run(as_feeds(batch, self._feed))
        return {name: outputs[name] for name in map(indices_of, self._names)}

    def pair(self, reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        """Return the outputs of both sides by name, without the scores of masked rows."""
        return drop_masked(reference, outputs, self._scores)

    def drop_scores(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs that the model itself has."""
        return {name: value for name, value in outputs.items() if name not in self._scores}

    def close(self) -> None:
        """Free the session."""
        if self._session is not None:
            self._session.close()


class _Measurement:
    """The errors of one linear over the batches so far."""

    def __init__(self) -> None:
        self.agreements: list[Array] = []
        self._outputs: dict[str, Noise] = {}
        self._noise = self._signal = 0.0
        self._numbers = 0

    def add(self, outputs: Mapping[str, tuple[Array, Array]], error: LinearError) -> None:
        self._noise, self._signal = self._noise + error.noise, self._signal + error.signal
        self._numbers += error.numbers
        for name, pair in outputs.items():
            self._outputs.setdefault(name, Noise()).add(*pair)

    def summarize(self, linear: Linear, images: int) -> LayerSensitivity:
        depth, width = linear.size or linear.weight[:2]
        return LayerSensitivity(
            name=linear.name,
            role=linear.role,
            block=linear.block,
            sqnr_db=decibels(self._signal, self._noise),
            output_sqnr_db=mean_sqnr_db(self._outputs.values()),
            agreement=float(np.concatenate(self.agreements).mean()) if self.agreements else None,
            macs=self._numbers // width * depth * width // images,
            region=linear.region,
        )
