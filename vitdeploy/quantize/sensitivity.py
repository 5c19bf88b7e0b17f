"""What each linear costs when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import LayerSensitivity
from vitdeploy.graph.model import Graph
from vitdeploy.graph.sqnr import Noise, decibels, mean_sqnr_db
from vitdeploy.graph.structure import Linear
from vitdeploy.quantize.switched import Own, Switched
from vitdeploy.session import Array

Agreement = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
"""How far two models' outputs for one batch agree, sample by sample: (n,), from 0 to 1. `Task.agreement` is one."""


def measure(
    graph: Graph,
    quantized: Graph,
    linears: Sequence[Linear],
    batches: Iterable[Array],
    *,
    agreement: Agreement | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[LayerSensitivity, ...]:
    """Quantize each of `linears` alone and look at what the linear and the model then give; worst first.

    Memory is that of the graph with its weights in both precisions, whatever the number of images.

    Args:
        graph: in float32, outliers migrated if they are to be; left as it is.
        quantized: the same graph with these linears quantized, by any writer of this package; left as it is.
        linears: with one MatMul each.
        batches: NCHW, as the graph takes them.
        agreement: of the model's task; None leaves it out.
        advance: told of each batch that is done.

    Raises:
        QuantizeError: there is no batch, or the model's outputs are not finite in float32.
    """
    seen = {linear.name: _Seen() for linear in linears}
    images = 0
    with Switched(graph, quantized, linears) as model:
        for batch in batches:
            reference, _ = model.run(batch)
            if not all(np.isfinite(a).all() for a in reference.values()):
                raise QuantizeError("the float32 model gives NaN or infinity", fix="Check the images and the weights.")
            for linear in linears:
                outputs, own = model.run(batch, {linear.name})
                seen[linear.name].see(reference, outputs, own[linear.name], agreement)
            images += len(batch)
            advance(1)
    if not images:
        raise QuantizeError("there is no calibration image", fix="Give --calibration a folder with images.")
    found = [seen[linear.name].of(linear, images) for linear in linears]
    return tuple(sorted(found, key=lambda layer: (layer.output_sqnr_db, layer.sqnr_db)))


class _Seen:
    """One linear over the batches so far."""

    def __init__(self) -> None:
        self._outputs: dict[str, Noise] = {}
        self._noise = self._signal = 0.0
        self._numbers = 0
        self._agreed: list[Array] = []

    def see(
        self, reference: Mapping[str, Array], outputs: Mapping[str, Array], own: Own, agreement: Agreement | None
    ) -> None:
        self._noise, self._signal = self._noise + own.noise, self._signal + own.signal
        self._numbers += own.numbers
        for name, value in reference.items():
            self._outputs.setdefault(name, Noise()).add(value, outputs[name])
        if agreement is not None:
            self._agreed.append(agreement(reference, outputs))

    def of(self, linear: Linear, images: int) -> LayerSensitivity:
        depth, width = linear.size or linear.weight[:2]
        return LayerSensitivity(
            name=linear.name,
            role=linear.role,
            block=linear.block,
            sqnr_db=decibels(self._signal, self._noise),
            output_sqnr_db=mean_sqnr_db(self._outputs.values()),
            agreement=float(np.concatenate(self._agreed).mean()) if self._agreed else None,
            macs=self._numbers // width * depth * width // images,
        )
