"""Q/DQ pairs around linears: scales and codes, and how they are written into the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, bias_behind, operand
from vitdeploy.quantize.observe import InputStatistics
from vitdeploy.session import Array

Ranges = Literal["minmax", "mse"]
CodeType = Literal["uint8", "int8", "e4m3"]
"""uint8 with a zero point (x86, where GELU's outputs waste no codes); int8 around 0, or FP8 E4M3 (TensorRT)."""

_SHRINK = np.linspace(1.0, 0.3, 15)
"""The shares of the full range to try. A smaller range clips more values and has finer steps."""

_CODES = {"uint8": (0, 255), "int8": (-128, 127)}
_LARGEST_E4M3 = 448.0


@dataclass(frozen=True)
class PairOptions:
    """Options of the Q/DQ pairs of a linear.

    Attributes:
        code_type: of the activations. Weights are int8, or E4M3 if activations are.
        largest_weight: the largest code of an int8 weight: 127, or 64 where sums of u8 x s8 saturate.
        ranges: of activations: from the smallest to the largest value, or clipped where that costs the linear's output
            least (mean squared error on the sampled rows, each channel weighted by what its weights amplify).
        correct_bias: whether the mean error of the output is subtracted from the bias (Nagel et al., 2019, section
            4.2).
    """

    code_type: CodeType = "uint8"
    largest_weight: int = 127
    ranges: Ranges = "minmax"
    correct_bias: bool = False


@dataclass(frozen=True)
class Affine:
    """A number format: value = scale · (code - zero)."""

    code_type: CodeType
    scale: float
    zero: int = 0

    def fake_quantize(self, values: Array) -> Array:
        """Quantize and dequantize `values`; float32."""
        scaled = values / np.float32(self.scale)
        if self.code_type == "e4m3":
            steps: Array = np.clip(scaled, -_LARGEST_E4M3, _LARGEST_E4M3).astype(ml_dtypes.float8_e4m3fn)
        else:
            steps = np.clip(np.rint(scaled) + self.zero, *_CODES[self.code_type]) - self.zero
        return np.asarray(steps.astype(np.float32) * np.float32(self.scale))

    @property
    def zero_point(self) -> Array:
        """The zero point as QuantizeLinear takes it: in the type of the codes."""
        types = {"uint8": np.uint8, "int8": np.int8, "e4m3": ml_dtypes.float8_e4m3fn}
        return np.array(self.zero, types[self.code_type])


def fit_affine(low: float, high: float, code_type: CodeType) -> Affine:
    """Return the format whose codes span `low` to `high` and include 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if code_type == "uint8":
        scale = (high - low) / 255 or 1.0
        return Affine(code_type, scale, round(-low / scale))
    return Affine(code_type, max(-low, high) / (127 if code_type == "int8" else _LARGEST_E4M3) or 1.0)


def fit_activation(statistics: InputStatistics, options: PairOptions, importance: Array) -> Affine:
    """Return the format of a linear's input.

    Args:
        statistics: of the input.
        options: type of the codes, and how ranges are taken.
        importance: the sum of squares of the weights that read each channel, (K,).
    """
    low, high = float(statistics.low.min()), float(statistics.high.max())
    if options.ranges == "minmax":
        return fit_affine(low, high, options.code_type)
    rows = statistics.rows
    candidates = [fit_affine(low * share, high * share, options.code_type) for share in _SHRINK]
    errors = [float(((c.fake_quantize(rows) - rows) ** 2).mean(axis=0) @ importance) for c in candidates]
    return candidates[int(np.argmin(errors))]


def quantize_weight(weight: Array, options: PairOptions) -> tuple[Array, Array]:
    """Return codes and float32 scales of a (K, N) weight.

    int8 has a scale for each output channel, E4M3 one for all.
    """
    if options.code_type == "e4m3":
        scale = np.float32(np.abs(weight).max() / _LARGEST_E4M3 or 1.0)
        return (weight / scale).astype(ml_dtypes.float8_e4m3fn), np.asarray(scale)
    return quantize_symmetric(weight, options.largest_weight, half_scales=options.code_type == "int8")


def quantize_symmetric(weight: Array, largest: int, *, half_scales: bool = False) -> tuple[Array, Array]:
    """Return int8 codes and float32 scales of a (K, N) weight, one scale per output channel.

    Args:
        weight: in float.
        largest: the largest code.
        half_scales: whether each scale must be a float16 number, because it will be stored as one.
    """
    scale = np.abs(weight).max(axis=0).astype(np.float32) / largest
    if half_scales:
        scale = np.maximum(scale.astype(np.float16), np.finfo(np.float16).smallest_subnormal).astype(np.float32)
    scale[scale == 0] = 1.0  # a dead channel: every code is 0, whatever the scale
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def write_pairs(
    graph: Graph, names: Iterable[str], statistics: Mapping[str, InputStatistics], options: PairOptions
) -> None:
    """Put Q/DQ pairs on the MatMuls called `names`, in place.

        x ─ MatMul(W) ─ [Add b]   ─▶   x ─ Q ─ DQ ─ MatMul(W int8 ─ DQ) ─ [Add b']

    Linears that read the same value share its pair. `statistics` are those of their inputs, by name.
    """
    products = set(names)
    readers: dict[str, list[ir.Node]] = {}
    for node in graph.nodes:
        if node.name in products and node.op_type == "MatMul":
            readers.setdefault(operand(node, 0).name or "", []).append(node)
    for name, nodes in readers.items():
        importance = np.sum([(array(n.inputs[1]).astype(np.float64) ** 2).sum(axis=1) for n in nodes], axis=0)
        activation = fit_activation(statistics[name], options, importance)
        pair = insert_pair(graph, nodes[0], 0, activation)
        for node in nodes:
            _write_weight(graph, node, statistics[name].rows, activation, options)
            node.replace_input_with(0, pair)


def insert_pair(graph: Graph, node: ir.Node, index: int, affine: Affine) -> ir.Value:
    """Insert a Q/DQ pair for the input `index` of `node`, which still reads the original; return its output."""
    x = operand(node, index)
    tape = ir.tape.Tape()
    scale = tape.initializer(ir.tensor(np.float32(affine.scale), name=f"{x.name}/scale"))
    zero = tape.initializer(ir.tensor(affine.zero_point, name=f"{x.name}/zero_point"))
    codes = tape.op("QuantizeLinear", [x, scale, zero], name=f"{x.name}/quantize")
    result = tape.op("DequantizeLinear", [codes, scale, zero], name=f"{x.name}/dequantize")
    return insert_before(graph, tape, node, x, codes, result)


def _write_weight(graph: Graph, node: ir.Node, rows: Array, activation: Affine, options: PairOptions) -> None:
    """Replace the weight of a MatMul by its codes. `rows` sample its input, (rows, K)."""
    old = operand(node, 1)
    weight = array(old)
    codes, scale = quantize_weight(weight, options)
    tape = ir.tape.Tape()
    inputs = [
        tape.initializer(ir.tensor(codes, name=f"{node.name}/weight_codes")),
        tape.initializer(ir.tensor(scale, name=f"{node.name}/weight_scale")),
    ]
    axis = {"axis": 1} if scale.ndim else {}
    result = tape.op("DequantizeLinear", inputs, axis, name=f"{node.name}/weight_dequantize")
    node.replace_input_with(1, insert_before(graph, tape, node, old, result))
    if options.correct_bias:
        error = (activation.fake_quantize(rows) @ (codes.astype(np.float32) * scale) - rows @ weight).mean(axis=0)
        _shift_bias(graph, node, -error)


def insert_before(graph: Graph, tape: ir.tape.Tape, before: ir.Node, like: ir.Value, *results: ir.Value) -> ir.Value:
    """Insert the nodes on `tape` before a node; return the last result, with the shape of `like`."""
    graph.insert_before(before, tape)
    results[-1].shape, results[-1].type = like.shape, ir.TensorType(ir.DataType.FLOAT)
    return results[-1]


def _shift_bias(graph: Graph, product: ir.Node, shift: Array) -> None:
    """Add `shift`, (N,), to the bias behind a MatMul, if it has one."""
    if (addition := bias_behind(product)) is None:
        return
    add, bias = addition
    shifted = graph.initializer((array(bias) + shift).astype(np.float32), f"{product.name}/bias_corrected")
    add.replace_input_with(next(i for i, value in enumerate(add.inputs) if value is bias), shifted)
