"""Weight-only INT8 and INT4: weights in few bits, activations and products in float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, operand
from vitdeploy.quantize.observe import InputStatistics
from vitdeploy.quantize.qdq import insert_before
from vitdeploy.session import Array

SMALLEST_GROUP = 16
"""The smallest number of rows that can share a scale in ONNX Runtime's kernels."""

_DAMPING = 0.1
"""Added to the diagonal of the Hessian, as a share of its mean, because the inputs are only a sample. GPTQ's paper
takes 0.01 with ten times as many rows. With 512 rows, 0.1 is as good or better on the models that were tried."""


@dataclass(frozen=True)
class WeightStorage:
    """The storage format of a weight (K, N).

    Attributes:
        bits: 8 (int8 around 0) or 4 (uint4 with a zero point: a symmetric format would waste one of 16 codes).
        group: how many of the K rows share a scale; None: all, so that there is one scale for each output channel.
    """

    bits: Literal[4, 8]
    group: int | None = None

    def describe(self) -> str:
        """Return the format in words."""
        codes = "uint4 with a zero point" if self.bits == 4 else "int8, symmetric"
        shared = "each output channel" if self.group is None else f"up to {self.group} inputs of an output channel"
        return f"{codes}, a scale for {shared}"

    def group_rows(self, count: int) -> int:
        """Return the rows of a group: the largest of `group`, `group`/2, … that divides `count`, or `count`."""
        group = self.group or count
        while count % group and group > SMALLEST_GROUP:
            group //= 2
        return group if count % group == 0 else count


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as scale · (codes - zero).

    Attributes:
        codes: (K, N), int8 or uint4.
        scale: (groups, N) float32.
        zero: (groups, N) like the codes; None where it is 0.
    """

    codes: Array
    scale: Array
    zero: Array | None

    @property
    def dequantized(self) -> Array:
        """The numbers that the codes stand for, (K, N) float32."""
        groups, channels = self.scale.shape
        codes = self.codes.astype(np.float32).reshape(groups, -1, channels)
        zero = 0 if self.zero is None else self.zero.astype(np.float32)[:, None]
        return np.asarray(((codes - zero) * self.scale[:, None]).reshape(self.codes.shape))


def round_to_nearest(weight: Array, storage: WeightStorage) -> QuantizedWeight:
    """Quantize a (K, N) weight, each number to the nearest code."""
    size = storage.group_rows(len(weight))
    groups = np.split(np.asarray(weight, np.float32), range(size, len(weight), size))
    formats = [_fit_group(group, storage.bits) for group in groups]
    codes = [_round(group, *fit, storage.bits) for group, fit in zip(groups, formats, strict=True)]
    return _join_groups(codes, formats, storage)


def compensate_rounding(weight: Array, storage: WeightStorage, inputs: Array) -> QuantizedWeight:
    """Quantize a (K, N) weight row by row; later rows compensate for earlier rounding errors.

    Frantar et al., GPTQ, 2023 (equations 2 and 3, by the Cholesky factor of the inverse Hessian), without reordering.
    Against rounding to the nearest it gains 7 dB at the output of two trained ViTs, and 9 dB with 8 bits. Choosing
    ranges by squared error, weighted or not, does not gain that.

    Args:
        weight: of a linear, x · W.
        storage: bits and groups.
        inputs: a sample of the rows that it is multiplied with, (rows, K).
    """
    remaining = np.array(weight, np.float32)
    count, size = len(remaining), storage.group_rows(len(remaining))
    hessian = inputs.T.astype(np.float64) @ inputs / len(inputs)
    hessian[np.diag_indices(count)] += _DAMPING * max(float(np.trace(hessian)) / count, np.finfo(np.float32).tiny)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    codes, formats = [], []
    for start in range(0, count, size):
        end = start + size
        scale, zero = _fit_group(remaining[start:end], storage.bits)
        errors = np.empty_like(remaining[start:end])
        for row in range(start, end):
            code = _round(remaining[row : row + 1], scale, zero, storage.bits)
            errors[row - start] = (remaining[row] - (code[0] - zero) * scale) / factor[row, row]
            remaining[row + 1 : end] -= np.outer(factor[row, row + 1 : end], errors[row - start])
            codes.append(code)
        remaining[end:] -= factor[start:end, end:].T @ errors
        formats.append((scale, zero))
    return _join_groups(codes, formats, storage)


def _join_groups(codes: list[Array], formats: list[tuple[Array, Array]], storage: WeightStorage) -> QuantizedWeight:
    scale, zero = (np.stack(numbers) for numbers in zip(*formats, strict=True))
    if storage.bits == 4:
        return QuantizedWeight(np.concatenate(codes).astype(ml_dtypes.uint4), scale, zero.astype(ml_dtypes.uint4))
    return QuantizedWeight(np.concatenate(codes).astype(np.int8), scale, None)


def _fit_group(group: Array, bits: int) -> tuple[Array, Array]:
    """Return the scale and zero point, (N,) each, that span a group's range."""
    if bits == 4:
        low, high = np.minimum(group.min(axis=0), 0), np.maximum(group.max(axis=0), 0)
        scale = (high - low) / np.float32(15)
        scale[scale == 0] = 1
        return scale, np.rint(-low / scale)
    scale = np.abs(group).max(axis=0) / np.float32(127)
    scale[scale == 0] = 1
    return scale, np.zeros_like(scale)


def _round(group: Array, scale: Array, zero: Array, bits: int) -> Array:
    low, high = (0, 15) if bits == 4 else (-127, 127)
    return np.asarray(np.clip(np.rint(group / scale) + zero, low, high))


def write_weights(
    graph: Graph,
    names: Iterable[str],
    storage: WeightStorage,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> None:
    """Store the weights of the MatMuls called `names` in few bits, in place.

        x ─ MatMul(W)   ─▶   x ─ MatMul(codes ─ DequantizeLinear)

    With `statistics` of the linears' inputs, by name, rounding errors are compensated. A weight that several linears
    share is stored once for each.
    """
    products = set(names)
    for node in [n for n in graph.nodes if n.name in products and n.op_type == "MatMul"]:
        old, inputs = operand(node, 1), (statistics or {}).get(operand(node, 0).name or "")
        if inputs is None:
            weight = round_to_nearest(array(old), storage)
        else:
            weight = compensate_rounding(array(old), storage, inputs.rows)
        result, tape = _record_weight(node.name or "", weight, storage)
        node.replace_input_with(1, insert_before(graph, tape, node, old, result))


def _record_weight(name: str, weight: QuantizedWeight, storage: WeightStorage) -> tuple[ir.Value, ir.tape.Tape]:
    """Record the DequantizeLinear of a weight on a tape; return its output too."""
    tape = ir.tape.Tape()
    scale, zero, axis = weight.scale, weight.zero, {"axis": 0, "block_size": storage.group_rows(len(weight.codes))}
    if storage.group is None:
        scale, zero, axis = scale[0], None if zero is None else zero[0], {"axis": 1}
    arrays = {"codes": weight.codes, "scale": scale, "zero_point": zero}
    inputs = [
        tape.initializer(ir.tensor(numbers, name=f"{name}/weight_{label}"))
        for label, numbers in arrays.items()
        if numbers is not None
    ]
    return tape.op("DequantizeLinear", inputs, axis, name=f"{name}/weight_dequantize"), tape
