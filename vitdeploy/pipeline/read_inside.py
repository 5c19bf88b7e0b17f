"""Read values inside an engine on the device, and compare them with those that a bundle has stored."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.evidence import Comparison, EvidenceLevel
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Numbers
from vitdeploy.graph.parity import Example
from vitdeploy.graph.sqnr import MOST_DB, Noise
from vitdeploy.measure.deviation import FLOORS, MOVED_TIMES, Place
from vitdeploy.measure.divergence import LIMIT_DB, noise_share
from vitdeploy.pipeline.block_values import BlockValues, StoredSpot, measure_noise, take_sample
from vitdeploy.session import Array
from vitdeploy.targets import Bundle, Compiled, Target

_FLOAT32 = ""
_MIGRATED = ("norm", "values", "attention")
"""Kinds of places at which migration divides channels: the graph has other values there, on purpose. What rounding
costs there is not known, and taken to be what a sound artifact loses at most."""


class Reader:
    """An engine that is built again with values inside as outputs, and run on the stored example."""

    def __init__(
        self,
        target: Target,
        bundle: Bundle,
        compiled: Compiled,
        values: BlockValues,
        example: Example,
        work: Path,
    ) -> None:
        self._target, self._bundle, self._compiled = target, bundle, compiled
        self._values, self._example, self._work = values, example, work
        self.floor = find_floor(bundle.numbers, on_gpu=target.runs_on == "cuda")

    def read(self, spots: Sequence[StoredSpot]) -> Readings:
        """Build the engine with these places as outputs, and run it.

        Raises:
            VitdeployError: it does not build or run.
        """
        values = self._values
        names = [spot.tensor for spot in spots]
        if values.indices and any(spot.rows is not None for spot in spots):
            names.append(values.indices)
        with tempfile.TemporaryDirectory(prefix="inside-", dir=self._work) as folder:
            watched = self._target.watch(self._bundle, self._compiled, names, Path(folder))
            with watched.session as session:
                outputs = session.run(self._example.feed(self._bundle.input_name))
        images = len(self._example.image)
        samples = {
            s.tensor: take_sample(s, outputs[s.tensor], images, values.limit) for s in spots if s.tensor in outputs
        }
        precision = self._bundle.numbers.precision
        known = values.emulated.get(precision, {})
        missing = [spot.layer for spot in spots if spot.tensor not in samples and (spot.tensor in known or not known)]
        return Readings(values, precision, samples, outputs.get(values.indices), watched.evidence, watched.how, missing)


class Readings:
    """The values of an engine at some places, beside those of its graph and of float32.

    Attributes:
        evidence: "compiled" if the engine itself ran.
        how: the thing that ran, in words.
        notes: places that could not be read.
    """

    def __init__(
        self,
        values: BlockValues,
        precision: str,
        samples: Mapping[str, Array],
        selected: Array | None,
        evidence: EvidenceLevel,
        how: str,
        missing: Sequence[str],
    ) -> None:
        self._values = values
        self._graph = precision if precision in values.emulated else _FLOAT32
        self._sides = {**values.emulated, _FLOAT32: values.float32}
        self._samples = samples
        self._selected = selected
        self.evidence: EvidenceLevel = evidence
        self.how = how
        unread = f"the compiler does not keep the values at the end of {', '.join(missing)}, so they are not compared"
        self.notes = (unread,) if missing else ()

    def place(self, spot: StoredSpot, reads: tuple[int, ...]) -> Place:
        """Return how far the engine is from its graph at a place, and the graph from float32."""
        actual, expected = self._measure(spot, self._graph), self._expect(spot)
        loses = MOST_DB if expected is None else expected.sqnr_db
        share = noise_share(LIMIT_DB if _is_changed(spot, loses) else loses)
        moved = self._values.moved.get(self._graph, {}).get(spot.tensor)
        return Place(
            error=None if actual is None else noise_share(actual.sqnr_db),
            expected=share if moved is None else min(share, MOVED_TIMES * moved),
            reads=reads,
        )

    def compare(self, name: str, spot: StoredSpot) -> Comparison:
        """Return the comparison of a place with float32, and with the graph."""
        noise, actual, expected = self._measure(spot, _FLOAT32), self._measure(spot, self._graph), self._expect(spot)
        row = Comparison(
            name=name,
            tensor=spot.tensor,
            kind=spot.kind,
            graph_db=None if actual is None else actual.sqnr_db,
            expected_db=None if expected is None else expected.sqnr_db,
        )
        if noise is None:
            return replace(row, note="the graph or the engine does not have it")
        if expected is not None and _is_changed(spot, expected.sqnr_db):
            return replace(row, note="quantization changes this value on purpose")
        return replace(
            row, sqnr_db=noise.sqnr_db, cosine=noise.cosine, reference_max=noise.reference_max,
            max_abs=noise.max_abs if np.isfinite(noise.max_abs) else None, nonfinite=noise.nonfinite,
        )  # fmt: skip

    def _measure(self, spot: StoredSpot, side: str) -> Noise | None:
        """Return the noise of the engine against one side; None if one of them does not have the place."""
        reference, actual = self._sides[side].get(spot.tensor), self._samples.get(spot.tensor)
        return measure_noise(spot, reference, actual, (self._values.chosen.get(side), self._selected))

    def _expect(self, spot: StoredSpot) -> Noise | None:
        """Return the noise of the graph against float32."""
        if self._graph == _FLOAT32:
            return None
        sides = self._values.float32.get(spot.tensor), self._sides[self._graph].get(spot.tensor)
        chosen = self._values.chosen
        return measure_noise(spot, *sides, (chosen.get(_FLOAT32), chosen.get(self._graph)))


def _is_changed(spot: StoredSpot, expected_db: float) -> bool:
    return spot.kind in _MIGRATED and expected_db < LIMIT_DB


def find_floor(numbers: Numbers, *, on_gpu: bool) -> float:
    """Return the relative error that proves nothing: see `FLOORS`."""
    return FLOORS[_name_floor(numbers, on_gpu=on_gpu)]


def _name_floor(numbers: Numbers, *, on_gpu: bool) -> str:
    """Return the type in which an engine rounds beside its quantized products."""
    if numbers.dynamic:
        return "int8"
    if on_gpu and numbers.rest == "fp32":
        return "tf32" if numbers.products == "fp32" else "fp16"
    return numbers.rest if numbers.rest in FLOORS else "fp16"
