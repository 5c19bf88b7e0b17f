"""Statistics of the inputs of linears, collected batch by batch over calibration images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Array, Inputs, as_feeds

SAMPLED_ROWS = 512
"""Rows sampled of each linear's input, whatever the number of images: 1.5 MB at 768 channels."""

_ROW_NUMBERS = "vitdeploy/rows"
_LARGEST_ROW_NUMBER = 1 << 31


@dataclass(frozen=True)
class InputStatistics:
    """The input of a linear over all calibration images.

    Attributes:
        low: the smallest value of each channel, (K,).
        high: the largest value of each channel, (K,).
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
    def is_zero(self) -> bool:
        """Return whether every value was 0."""
        return not (self.low.any() or self.high.any())

    def divide(self, factor: Array) -> InputStatistics:
        """Return the statistics after division of each channel by `factor`, (K,), above 0."""
        return InputStatistics(self.low / factor, self.high / factor, (self.rows / factor).astype(np.float32))


def collect_statistics(
    graph: Graph, tensors: Iterable[str], batches: Iterable[Inputs], count: int
) -> dict[str, InputStatistics]:
    """Run `graph` on every batch and collect statistics of `tensors`.

    They are float32, (..., K), and each of their rows is one sample.

        x ─ node ─▶ ReduceMin, ReduceMax over all but the channels;  Reshape (-1, K) ─ Gather of random rows

    Args:
        graph: not changed. Its first input is fed.
        tensors: names of values.
        batches: NCHW, as the graph takes them.
        count: how many batches there will be.

    Raises:
        QuantizeError: there is no batch, or a tensor is not finite (named).
    """
    probe = Graph(graph.model.clone())
    probe.infer_shapes()
    selected = set(tensors)
    values = {v.name or "": v for v in _list_values(probe) if v.name in selected}
    # In the order of computation: the first tensor that is not finite is where it began.
    collectors = {name: _Collector(f"{name}, the input of {_name_readers(v)},") for name, v in values.items()}
    feed = probe.model.graph.inputs[0].name or ""
    _append_statistics(probe, list(values.values()))
    every, rows = max(1, count // SAMPLED_ROWS), max(1, SAMPLED_ROWS // count)
    rng = np.random.default_rng(0)
    done = 0
    with scratch_folder("observe") as folder:
        path = folder / "probe.onnx"
        probe.save(path)
        with OnnxSession(path, lean=True) as session:
            for batch in batches:
                numbers = rng.integers(0, _LARGEST_ROW_NUMBER, rows)
                outputs = session.run({**as_feeds(batch, feed), _ROW_NUMBERS: numbers})
                for name, collector in collectors.items():
                    collector.add(done, *(outputs[f"{name}/{label}"] for label in ("low", "high", "rows")))
                    if done % every == 0:
                        collector.sample(outputs[f"{name}/rows"])
                done += 1
    if not done:
        raise QuantizeError("there is no calibration image", fix="Give --calibration a folder with images.")
    return {name: collector.statistics() for name, collector in collectors.items()}


class _Collector:
    """The statistics of one tensor over the batches so far."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._low: Array | None = None
        self._high: Array | None = None
        self._rows: list[Array] = []

    def add(self, batch: int, low: Array, high: Array, rows: Array) -> None:
        # Some kernels for a maximum ignore NaN, so the sampled rows are checked as well.
        if not all(np.isfinite(a).all() for a in (low, high, rows)):
            raise QuantizeError(
                f"{self._description} is not finite in calibration batch {batch}",
                fix="Check that image, the preprocessing and the weights: no range can be taken from it.",
            )
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def sample(self, rows: Array) -> None:
        count = sum(map(len, self._rows))
        self._rows.append(rows[: max(0, SAMPLED_ROWS - count)])

    def statistics(self) -> InputStatistics:
        assert self._low is not None
        assert self._high is not None
        return InputStatistics(self._low, self._high, np.concatenate(self._rows))


def _name_readers(value: ir.Value) -> str:
    return ", ".join(sorted({use.node.name or "" for use in value.uses()}))


def _list_values(graph: Graph) -> Iterable[ir.Value]:
    yield from graph.model.graph.inputs
    for node in graph.nodes:
        yield from node.outputs


def _append_statistics(graph: Graph, values: list[ir.Value]) -> None:
    """Append the reductions and the sample of each value, and make them the only outputs."""
    main = graph.model.graph
    numbers = ir.Value(name=_ROW_NUMBERS, shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.INT64))
    main.inputs.append(numbers)
    outputs: list[ir.Value] = []
    for value in values:
        shape = dims(value)
        assert shape is not None
        assert shape[-1] is not None
        tape = ir.tape.Tape()
        name, axes = value.name, _integers(tape, range(len(shape) - 1), f"{value.name}/axes")
        flat = tape.op("Reshape", [value, _integers(tape, [-1, shape[-1]], f"{name}/flat_shape")], name=f"{name}/flat")
        count = tape.op("Shape", [flat], {"start": 0, "end": 1}, name=f"{name}/count")
        row = tape.op("Mod", [numbers, count], name=f"{name}/row")
        statistics = {
            "low": tape.op("ReduceMin", [value, axes], {"keepdims": 0}, name=f"{name}/low"),
            "high": tape.op("ReduceMax", [value, axes], {"keepdims": 0}, name=f"{name}/high"),
            "rows": tape.op("Gather", [flat, row], name=f"{name}/rows"),
        }
        for label, output in statistics.items():
            output.name, output.dtype = f"{name}/{label}", ir.DataType.FLOAT
            output.shape = ir.Shape([None, shape[-1]] if label == "rows" else [shape[-1]])
            outputs.append(output)
        for initializer in tape.initializers:
            main.register_initializer(initializer)
        main.extend(list(tape.nodes))
    main.outputs[:] = outputs


def _integers(tape: ir.tape.Tape, numbers: Iterable[int], name: str) -> ir.Value:
    return tape.initializer(ir.tensor(np.array(list(numbers), np.int64), name=name))
