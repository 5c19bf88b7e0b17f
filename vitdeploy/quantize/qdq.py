"""Q/DQ pairs around linears: how a float becomes 8 bits, and where that is written into the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, only_consumer, operand
from vitdeploy.quantize.observe import Observed
from vitdeploy.session import Array

Ranges = Literal["minmax", "mse"]
Kind = Literal["uint8", "int8", "e4m3"]
"""uint8 with a zero point (x86, where GELU's outputs waste no codes); int8 around 0, or FP8 E4M3 (TensorRT)."""

_SHRINK = np.linspace(1.0, 0.3, 15)
"""Shares of the full range that are tried: beyond, values are clipped, and the steps in between are finer."""

_CODES = {"uint8": (0, 255), "int8": (-128, 127)}
_LARGEST_E4M3 = 448.0


@dataclass(frozen=True)
class PairOptions:
    """How the Q/DQ pairs of a linear are written.

    Attributes:
        kind: of the activations; weights are int8, or E4M3 like them.
        largest_weight: the largest code of an int8 weight: 127, or 64 where sums of u8 x s8 saturate.
        ranges: of activations: from the smallest to the largest value seen, or clipped where that costs the linear's
            output least (mean squared error on the sampled rows, each channel weighted by what its weights amplify).
        correct_bias: whether the mean error of the output is taken out of the bias (Nagel et al., 2019, section 4.2).
    """

    kind: Kind = "uint8"
    largest_weight: int = 127
    ranges: Ranges = "minmax"
    correct_bias: bool = False


@dataclass(frozen=True)
class Affine:
    """value = scale · (code - zero), with codes of one kind."""

    kind: Kind
    scale: float
    zero: int = 0

    def dequantized(self, values: Array) -> Array:
        """What is left of `values` after both directions, float32."""
        scaled = values / np.float32(self.scale)
        if self.kind == "e4m3":
            steps: Array = np.clip(scaled, -_LARGEST_E4M3, _LARGEST_E4M3).astype(ml_dtypes.float8_e4m3fn)
        else:
            steps = np.clip(np.rint(scaled) + self.zero, *_CODES[self.kind]) - self.zero
        return np.asarray(steps.astype(np.float32) * np.float32(self.scale))

    @property
    def zero_point(self) -> Array:
        """As QuantizeLinear takes it; its type is that of the codes."""
        types = {"uint8": np.uint8, "int8": np.int8, "e4m3": ml_dtypes.float8_e4m3fn}
        return np.array(self.zero, types[self.kind])


def affine(low: float, high: float, kind: Kind) -> Affine:
    """The format whose codes span `low` to `high` and have one for 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if kind == "uint8":
        scale = (high - low) / 255 or 1.0
        return Affine(kind, scale, round(-low / scale))
    return Affine(kind, max(-low, high) / (127 if kind == "int8" else _LARGEST_E4M3) or 1.0)


def activation_format(observed: Observed, options: PairOptions, importance: Array) -> Affine:
    """The format of a linear's input.

    Args:
        observed: what was seen of it.
        options: kind and range method.
        importance: the sum of squares of the weights that read each channel, (K,).
    """
    low, high = float(observed.low.min()), float(observed.high.max())
    if options.ranges == "minmax":
        return affine(low, high, options.kind)
    candidates = [affine(low * share, high * share, options.kind) for share in _SHRINK]
    errors = [
        float(((c.dequantized(observed.rows) - observed.rows) ** 2).mean(axis=0) @ importance) for c in candidates
    ]
    return candidates[int(np.argmin(errors))]


def weight_codes(weight: Array, options: PairOptions) -> tuple[Array, Array]:
    """Codes and float32 scales of a (K, N) weight: int8 with a scale for each output channel, E4M3 with one for all."""
    if options.kind == "e4m3":
        scale = np.float32(np.abs(weight).max() / _LARGEST_E4M3 or 1.0)
        return (weight / scale).astype(ml_dtypes.float8_e4m3fn), np.asarray(scale)
    return symmetric_codes(weight, options.largest_weight, half_scales=options.kind == "int8")


def symmetric_codes(weight: Array, largest: int, *, half_scales: bool = False) -> tuple[Array, Array]:
    """int8 codes and float32 scales of a (K, N) weight, one scale for each output channel.

    `half_scales`: of numbers that float16 has, because the scales will be stored in it.
    """
    scale = np.abs(weight).max(axis=0).astype(np.float32) / largest
    if half_scales:
        scale = np.maximum(scale.astype(np.float16), np.finfo(np.float16).smallest_subnormal).astype(np.float32)
    scale[scale == 0] = 1.0  # a dead channel: every code is 0, whatever the scale
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def write(graph: Graph, names: Iterable[str], observed: Mapping[str, Observed], options: PairOptions) -> None:
    """Put Q/DQ pairs on the MatMuls called `names`, in place.

        x ─ MatMul(W) ─ [Add b]   ─▶   x ─ Q ─ DQ ─ MatMul(W int8 ─ DQ) ─ [Add b']

    Linears that read the same value share its pair.
    """
    wanted = set(names)
    readers: dict[str, list[ir.Node]] = {}
    for node in graph.nodes:
        if node.name in wanted and node.op_type == "MatMul":
            readers.setdefault(operand(node, 0).name or "", []).append(node)
    for name, nodes in readers.items():
        importance = np.sum([(array(n.inputs[1]).astype(np.float64) ** 2).sum(axis=1) for n in nodes], axis=0)
        found = activation_format(observed[name], options, importance)
        pair = pair_on(graph, nodes[0], 0, found)
        for node in nodes:
            _write_weight(graph, node, observed[name], found, options)
            node.replace_input_with(0, pair)


def pair_on(graph: Graph, node: ir.Node, index: int, found: Affine) -> ir.Value:
    """Insert a Q/DQ pair for what `node` reads at `index`, before it; the node itself goes on reading the original."""
    x = operand(node, index)
    tape = ir.tape.Tape()
    scale = tape.initializer(ir.tensor(np.float32(found.scale), name=f"{x.name}/scale"))
    zero = tape.initializer(ir.tensor(found.zero_point, name=f"{x.name}/zero_point"))
    codes = tape.op("QuantizeLinear", [x, scale, zero], name=f"{x.name}/quantize")
    result = tape.op("DequantizeLinear", [codes, scale, zero], name=f"{x.name}/dequantize")
    return place_before(graph, tape, node, x, codes, result)


def _write_weight(graph: Graph, node: ir.Node, seen: Observed, found: Affine, options: PairOptions) -> None:
    old = operand(node, 1)
    weight = array(old)
    codes, scale = weight_codes(weight, options)
    tape = ir.tape.Tape()
    inputs = [
        tape.initializer(ir.tensor(codes, name=f"{node.name}/weight_codes")),
        tape.initializer(ir.tensor(scale, name=f"{node.name}/weight_scale")),
    ]
    axis = {"axis": 1} if scale.ndim else {}
    result = tape.op("DequantizeLinear", inputs, axis, name=f"{node.name}/weight_dequantize")
    node.replace_input_with(1, place_before(graph, tape, node, old, result))
    if options.correct_bias:
        error = (found.dequantized(seen.rows) @ (codes.astype(np.float32) * scale) - seen.rows @ weight).mean(axis=0)
        _shift_bias(graph, node, -error)


def place_before(graph: Graph, tape: ir.tape.Tape, before: ir.Node, like: ir.Value, *results: ir.Value) -> ir.Value:
    """Insert what `tape` recorded before a node; the last of `results` has the shape of `like`, and is returned."""
    for initializer in tape.initializers:
        graph.model.graph.register_initializer(initializer)
    graph.model.graph.insert_before(before, list(tape.nodes))
    for node in tape.nodes:
        node.outputs[0].name = f"{node.name}:0"
    results[-1].shape, results[-1].type = like.shape, ir.TensorType(ir.DataType.FLOAT)
    return results[-1]


def _shift_bias(graph: Graph, node: ir.Node, shift: Array) -> None:
    """Add `shift`, (N,), to the bias behind a MatMul; without a bias there is nothing to correct in."""
    add = only_consumer(node.outputs[0], "Add")
    index = next((i for i, v in enumerate(add.inputs) if v is not node.outputs[0]), None) if add is not None else None
    bias = constant(add.inputs[index]) if add is not None and index is not None else None
    if add is None or index is None or bias is None or len(bias.shape) != 1:
        return
    corrected = (bias.numpy() + shift).astype(np.float32)
    add.replace_input_with(index, graph.initializer(corrected, f"{node.name}/bias_corrected"))
