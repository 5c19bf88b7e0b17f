"""Ranges of activations, collected batch by batch over calibration data."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.environment import available_cores
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph, constant
from vitdeploy.session import Array, Inputs, as_feeds

LARGEST_HALF = float(np.finfo(np.float16).max)

_CARRIERS = {
    "Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Mul", "Pad", "Reshape", "Slice", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""The operators that can stand between a mask's constant and the operator that it loses in."""


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of one tensor.

    Attributes:
        low: the smallest value; of a masked tensor, the mask's own (perhaps minus infinity), which means nothing.
        high: the largest value.
        masked: whether the tensor has minus infinity on purpose: scores with a mask on them, the padding of a MaxPool.
    """

    low: float
    high: float
    masked: bool = False

    @property
    def magnitude(self) -> float:
        """The largest magnitude, without the low numbers of a mask, which only have to lose."""
        return abs(self.high) if self.masked else max(abs(self.low), abs(self.high))


def collect_ranges(graph: Graph, batches: Iterable[Inputs], tensors: Collection[str] | None = None) -> dict[str, Range]:
    """Return the ranges of float32 tensors that `graph` takes or computes.

    Each tensor is reduced to three numbers inside a copy of the graph, which ONNX Runtime runs batch by batch.

        x ─ node ─▶ ReduceMin, ReduceMax, ReduceL1        L1 is NaN exactly when something in the tensor is

    Args:
        graph: not changed. Its first input is fed.
        batches: NCHW float32.
        tensors: names of values; None for all.

    Raises:
        QuantizeError: a name is not a float32 tensor of the graph, there is no batch, or a tensor is not finite.
    """
    probe = Graph(graph.model.clone())
    probe.infer_shapes()
    values = _select_values(probe, tensors)
    masks = find_masks(probe)
    lows = np.full(len(values), np.inf)
    highs = np.full(len(values), -np.inf)
    count = 0
    feed = probe.model.graph.inputs[0].name or ""
    _append_reductions(probe, values)
    with scratch_folder("ranges") as folder:
        path = folder / "probe.onnx"
        probe.save(path)
        session = _open_in_order(path)
        for batch in batches:
            low, high, l1 = np.array(session.run(None, dict(as_feeds(batch, feed))), np.float64).reshape(-1, 3).T
            _refuse_non_finite(values, masks, low, high, l1, count)
            lows, highs = np.minimum(lows, low), np.maximum(highs, high)
            count += 1
        del session
    if not count:
        raise QuantizeError("there is no image to take ranges from", fix="Give --calibration a folder with images.")
    return {
        value.name or "": Range(float(low), float(high), value.name in masks)
        for value, low, high in zip(values, lows, highs, strict=True)
    }


def find_masks(graph: Graph) -> set[str]:
    """Find the tensors that carry minus infinity on purpose.

    They lie between a mask's constant and the softmax, or between a Pad and the MaxPool that ignores it, as in the
    stems of timm's hybrids.
    """
    visited: dict[ir.Value, bool] = {}

    def carries_mask(value: ir.Value | None) -> bool:
        if value is None or value in visited:
            return value is not None and visited[value]
        node = value.producer()
        if (tensor := constant(value)) is not None:
            visited[value] = is_mask(tensor)
        elif node is None or node.op_type not in _CARRIERS:
            visited[value] = False
        else:
            visited[value] = sum(map(carries_mask, node.inputs)) > 0  # not any(): every input has to be visited
        return visited[value]

    for node in graph.nodes:
        if node.op_type in {"Softmax", "MaxPool"}:
            carries_mask(node.inputs[0])
        elif node.op_type == "Attention" and len(node.inputs) > 3:
            carries_mask(node.inputs[3])
    return {value.name or "" for value, is_masked in visited.items() if is_masked}


def is_mask(tensor: ir.TensorProtocol) -> bool:
    """Return whether it has a number that becomes 0 in any softmax: float16's lowest or below."""
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or not tensor.size:
        return False
    return bool(tensor.numpy().min() <= -LARGEST_HALF)


def _select_values(graph: Graph, tensors: Collection[str] | None) -> list[ir.Value]:
    computed = [v for node in graph.nodes for v in node.outputs]
    values = {v.name or "": v for v in (*graph.model.graph.inputs, *computed) if v.dtype == ir.DataType.FLOAT}
    if tensors is None:
        return [v for v in values.values() if v.name]
    if missing := sorted(set(tensors) - set(values)):
        raise QuantizeError(
            f"{missing[0]} is not a float32 tensor that the graph computes", fix="Name a value of the raised graph."
        )
    return [value for name, value in values.items() if name in set(tensors)]


def _append_reductions(graph: Graph, values: list[ir.Value]) -> None:
    """Append the reductions of each value, and make them the only outputs."""
    main = graph.model.graph
    outputs = []
    for value in values:
        last = value.producer()
        for op_type, label in (("ReduceMin", "low"), ("ReduceMax", "high"), ("ReduceL1", "l1")):
            node = ir.node(op_type, [value], {"keepdims": 0}, name=f"{value.name}/{label}")
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, value.type, ir.Shape([])
            # Right behind the node that computes it: at the graph's end, every activation would live until then.
            main.append(node) if last is None else main.insert_after(last, node)
            last = node
            outputs.append(node.outputs[0])
    main.outputs[:] = outputs


def _open_in_order(path: Path) -> ort.InferenceSession:
    """Open a session that frees each activation as soon as it is reduced.

    ONNX Runtime's own order goes to the last node first, which keeps all of them: 280 MB on ViT-Base. Its memory
    pattern then takes that twice.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # its warnings are about optimisations, not about results
    options.intra_op_num_threads = available_cores()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _refuse_non_finite(values: list[ir.Value], masks: set[str], low: Array, high: Array, l1: Array, batch: int) -> None:
    """Refuse NaN, and infinities that are not a mask. Name the first such tensor in the order of computation."""
    for value, least, most, norm in zip(values, low, high, l1, strict=True):
        is_masking = value.name in masks and least == -math.inf and most < math.inf
        if math.isnan(norm) or not (is_masking or (math.isfinite(least) and math.isfinite(most))):
            node = value.producer()
            origin = f", computed by {node.name} ({node.op_type})," if node is not None else ", the graph's input,"
            number = "NaN" if math.isnan(norm) else "infinity"
            raise QuantizeError(
                f"{value.name}{origin} has {number} in float32 already, in calibration batch {batch}",
                fix="Check that image, the preprocessing and the weights: no range can be taken from it.",
            )
