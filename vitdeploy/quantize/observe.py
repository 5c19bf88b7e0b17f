"""What the inputs of linears are like over calibration images, streamed: memory does not grow with their number."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Array

SAMPLED_ROWS = 512
"""Rows kept of each linear's input, whatever the number of images: 1.5 MB at 768 channels."""

_PICK = "vitdeploy/rows"
_LARGEST_PICK = 1 << 31


@dataclass(frozen=True)
class Observed:
    """A linear's input over all calibration images.

    Attributes:
        low, high: smallest and largest value of each channel, (K,).
        rows: a random sample of its rows, (at most `SAMPLED_ROWS`, K) float32.
    """

    low: Array
    high: Array
    rows: Array

    @property
    def magnitude(self) -> Array:
        """The largest magnitude of each channel, (K,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def silent(self) -> bool:
        """Whether it was 0 throughout."""
        return not (self.low.any() or self.high.any())

    def divided(self, factor: Array) -> Observed:
        """What would have been seen, had each channel been divided by `factor`, (K,), which is above 0."""
        return Observed(self.low / factor, self.high / factor, (self.rows / factor).astype(np.float32))


def observe(graph: Graph, tensors: Iterable[str], batches: Iterable[Array], images: int) -> dict[str, Observed]:
    """Run `graph` on every batch and watch `tensors`, float32 (..., K), of which each row is one sample.

        x ─ node ─▶ ReduceMin, ReduceMax over all but the channels;  Reshape (-1, K) ─ Gather of random rows

    Args:
        graph: left as it is. Its first input is fed.
        tensors: names of values.
        batches: NCHW, as the graph takes them.
        images: how many batches there will be.

    Raises:
        QuantizeError: there is no batch, or a tensor is not finite (named).
    """
    probe = Graph(graph.model.clone())
    probe.infer_shapes()
    wanted = set(tensors)
    values = {v.name or "": v for v in _values(probe) if v.name in wanted}
    names = list(values)  # in the order of computation: the first that is not finite is where it began
    feed = probe.model.graph.inputs[0].name or ""
    described = {name: f"{name}, the input of {_readers(values[name])}," for name in names}
    _watch(probe, [values[name] for name in names])
    found = {name: _Running(told) for name, told in described.items()}
    every, rows = max(1, images // SAMPLED_ROWS), max(1, SAMPLED_ROWS // images)
    rng = np.random.default_rng(0)
    count = 0
    with tempfile.TemporaryDirectory(prefix="vitdeploy-observe-") as folder:
        path = Path(folder) / "probe.onnx"
        probe.save(path)
        with OnnxSession(path, lean=True) as session:
            for batch in batches:
                seen = session.run({feed: batch, _PICK: rng.integers(0, _LARGEST_PICK, rows)})
                for name in names:
                    found[name].see(count, *(seen[f"{name}/{what}"] for what in ("low", "high", "rows")))
                    if count % every == 0:
                        found[name].keep(seen[f"{name}/rows"])
                count += 1
    if not count:
        raise QuantizeError("there is no calibration image", fix="Give --calibration a folder with images.")
    return {name: running.observed() for name, running in found.items()}


class _Running:
    """The observation of one tensor so far."""

    def __init__(self, told: str) -> None:
        self._told = told
        self._low: Array | None = None
        self._high: Array | None = None
        self._rows: list[Array] = []

    def see(self, batch: int, low: Array, high: Array, rows: Array) -> None:
        # NaN passes through a maximum in some kernels and not in others: the sampled rows are looked at as well.
        if not all(np.isfinite(a).all() for a in (low, high, rows)):
            raise QuantizeError(
                f"{self._told} is not finite in calibration batch {batch}",
                fix="Check that image, the preprocessing and the weights: no range can be taken from it.",
            )
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def keep(self, rows: Array) -> None:
        kept = sum(map(len, self._rows))
        self._rows.append(rows[: max(0, SAMPLED_ROWS - kept)])

    def observed(self) -> Observed:
        assert self._low is not None
        assert self._high is not None
        return Observed(self._low, self._high, np.concatenate(self._rows))


def _readers(value: ir.Value) -> str:
    return ", ".join(sorted({use.node.name or "" for use in value.uses()}))


def _values(graph: Graph) -> Iterable[ir.Value]:
    yield from graph.model.graph.inputs
    for node in graph.nodes:
        yield from node.outputs


def _watch(graph: Graph, values: list[ir.Value]) -> None:
    """Append the reductions and the sample, and make them the only outputs."""
    main = graph.model.graph
    pick = ir.Value(name=_PICK, shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.INT64))
    main.inputs.append(pick)
    outputs: list[ir.Value] = []
    for value in values:
        shape = dims(value)
        assert shape is not None
        assert shape[-1] is not None
        tape = ir.tape.Tape()
        name, axes = value.name, _numbers(tape, range(len(shape) - 1), f"{value.name}/axes")
        flat = tape.op("Reshape", [value, _numbers(tape, [-1, shape[-1]], f"{name}/flat_shape")], name=f"{name}/flat")
        count = tape.op("Shape", [flat], {"start": 0, "end": 1}, name=f"{name}/count")
        row = tape.op("Mod", [pick, count], name=f"{name}/row")
        watched = {
            "low": tape.op("ReduceMin", [value, axes], {"keepdims": 0}, name=f"{name}/low"),
            "high": tape.op("ReduceMax", [value, axes], {"keepdims": 0}, name=f"{name}/high"),
            "rows": tape.op("Gather", [flat, row], name=f"{name}/rows"),
        }
        for what, output in watched.items():
            output.name, output.dtype = f"{name}/{what}", ir.DataType.FLOAT
            output.shape = ir.Shape([None, shape[-1]] if what == "rows" else [shape[-1]])
            outputs.append(output)
        for initializer in tape.initializers:
            main.register_initializer(initializer)
        main.extend(list(tape.nodes))
    main.outputs[:] = outputs


def _numbers(tape: ir.tape.Tape, numbers: Iterable[int], name: str) -> ir.Value:
    return tape.initializer(ir.tensor(np.array(list(numbers), np.int64), name=name))
