"""Bring what is added to the scores of an attention to the one bias that `Attention` takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, operand, producer

MASKED = -65504.0
"""What a masked score becomes: the lowest float16, so that an FP16 graph holds it too; its exponential is 0."""


@dataclass(frozen=True)
class Bias:
    """A summand of the scores.

    Attributes:
        value: what is added; or a condition, see `chosen`.
        scale: a factor on it.
        windows: it is a constant that was added to scores of that 5-D shape (batch, windows, heads, n, n); a batch of
            None varies.
        chosen: what is added where the condition `value` holds, and where it does not.
    """

    value: ir.Value
    scale: float
    windows: tuple[int | None, ...] | None = None
    chosen: tuple[float, float] | None = None

    @property
    def repeats(self) -> bool:
        """Whether it is a mask over windows that a varying batch repeats."""
        return self.windows is not None and self.windows[0] is None


def one_bias(tape: ir.tape.Tape, v: ir.Value, biases: tuple[Bias, ...], scores: ir.Value, name: str) -> ir.Value | None:
    """All `biases` of the `scores` (batch, heads, queries, keys) as one; None if they add nothing.

    With a varying batch, a mask over windows is repeated for each image, as often as the batch of `v` says:

        mask (windows, 1, n, n) + bias (1, heads, n, n) ─ Tile ─▶ (batch · windows, heads, n, n)
    """
    used = [b for b in biases if not _adds_nothing(b, scores)]
    if not used:
        return None
    # Constants come together first; what is repeated has to be a constant, and is repeated once.
    once = [_summand(tape, b, f"{name}/bias_{i}") for i, b in enumerate(used) if not b.repeats]
    repeated = [_summand(tape, b, f"{name}/bias_{i}") for i, b in enumerate(used) if b.repeats]
    if repeated:
        repeated += [v for v in once if constant(v) is not None]
        once = [v for v in once if constant(v) is None]
        once.insert(0, _for_each_image(tape, v, _sum(tape, repeated, f"{name}/windows"), f"{name}/windows"))
    return covering(tape, _sum(tape, once, f"{name}/bias"), (dims(scores) or ())[-2:], name)


def is_idle(mask: ir.Value, scores: tuple[int | None, ...]) -> bool:
    """Whether a constant mask lets every score pass as it is: all true, or all zero.

    A mask that is larger than the scores would repeat them, and stays. `Attention` itself refuses such a one, so that a
    batch that varies is the same in both.
    """
    expand = producer(mask, "Expand")
    value, shape = (operand(expand, 0) if expand is not None else mask), dims(mask)
    if constant(value) is None or shape is None or len(shape) > len(scores):
        return False
    fits = all(n in (1, size) for n, size in zip(shape[::-1], scores[::-1], strict=False))
    numbers = array(value)
    return fits and bool(numbers.all() if numbers.dtype == np.bool_ else not numbers.any())


def additive(tape: ir.tape.Tape, mask: ir.Value, dtype: ir.DataType | None, name: str) -> ir.Value:
    """A constant boolean mask as numbers to add, which every target takes; any other as it is.

    A row that lets no key pass keeps its mask: what becomes of it is the operator's own matter.
    """
    if constant(mask) is None or mask.dtype != ir.DataType.BOOL or dtype is None:
        return mask
    passes = array(mask)
    if passes.ndim == 0 or not passes.any(axis=-1).all():
        return mask
    numbers = np.where(passes, 0.0, MASKED).astype(dtype.numpy())
    return tape.initializer(ir.tensor(numbers, name=f"{name}/additive_mask"))


def covering(tape: ir.tape.Tape, mask: ir.Value, scores: tuple[int | None, ...], name: str) -> ir.Value:
    """`mask` with one number for each of the `scores` (queries, keys), where Add would repeat a row or a column.

    `Attention` pads a short last axis with minus infinity instead, and ONNX Runtime refuses a single row.
    """
    shape = dims(mask)
    if shape is None or shape[-2:] == scores or None in scores:
        return mask
    if constant(mask) is not None:
        numbers = array(mask)
        whole = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, [int(n or 1) for n in scores])).copy()
        return tape.initializer(ir.tensor(whole, name=f"{name}/mask"))
    covered = tape.initializer(ir.tensor(np.array(scores, np.int64), name=f"{name}/mask_shape"))
    return tape.op("Expand", [mask, covered], name=f"{name}/mask")


def _adds_nothing(bias: Bias, scores: ir.Value) -> bool:
    plain = constant(bias.value) is not None and bias.windows is None and bias.chosen is None
    return plain and is_idle(bias.value, dims(scores) or ())


def _summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    """The bias in the scores' own form: 4-D, scaled; a new constant if it was one, because exporters share them."""
    if constant(bias.value) is not None:
        return _constant_summand(tape, bias, name)
    if bias.chosen is not None:
        yes, no = (
            tape.initializer(ir.tensor(np.array(bias.scale * number, np.float32), name=f"{name}/{label}"))
            for label, number in zip(("yes", "no"), bias.chosen, strict=True)
        )
        result = tape.op("Where", [bias.value, yes, no], name=name)
        result.shape, result.dtype = bias.value.shape, ir.DataType.FLOAT
        return result
    if bias.scale == 1.0:
        return bias.value
    factor = tape.initializer(ir.tensor(np.array(bias.scale, np.float32), name=f"{name}/factor"))
    result = tape.op("Mul", [bias.value, factor], name=name)
    result.shape, result.type = bias.value.shape, bias.value.type
    return result


def _constant_summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    if bias.scale == 1.0 and bias.windows is None and bias.chosen is None:
        return bias.value
    numbers = array(bias.value)
    if bias.chosen is not None:
        numbers = np.where(numbers, *bias.chosen).astype(np.float32)
    if bias.windows is not None:
        batch, windows, _, rows, columns = (int(n or 1) for n in bias.windows)
        mask = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, (batch, windows, 1, rows, columns)))
        numbers = mask.reshape(batch * windows, -1, rows, columns)
    return tape.initializer(ir.tensor(numbers * np.array(bias.scale, numbers.dtype), name=name))


def _for_each_image(tape: ir.tape.Tape, v: ir.Value, bias: ir.Value, name: str) -> ir.Value:
    """The constant (windows, heads, n, n) as often as v (batch · windows, heads, n, size) has images.

    The query would tell as well, but has to have one reader for the scale to be folded into its linear.
    """
    windows, *rest = array(bias).shape

    def ints(label: str, values: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{name}/{label}"))

    size = tape.op("Shape", [v], {"start": 0, "end": 1}, name=f"{name}/all")
    images = tape.op("Div", [size, ints("number", [windows])], name=f"{name}/images")
    times = tape.op("Concat", [images, ints("ones", [1] * len(rest))], {"axis": 0}, name=f"{name}/times")
    result = tape.op("Tile", [bias, times], name=f"{name}/repeated")
    result.shape, result.type = ir.Shape([None, *rest]), bias.type
    return result


def _sum(tape: ir.tape.Tape, summands: list[ir.Value], name: str) -> ir.Value:
    """One bias of several; constants are added here and now."""
    total, *others = summands
    for number, other in enumerate(others):
        label = f"{name}_sum_{number}"
        if constant(total) is not None and constant(other) is not None:
            total = tape.initializer(ir.tensor(array(total) + array(other), name=label))
            continue
        one, two = dims(total), dims(other)
        result = tape.op("Add", [total, other], name=label)
        result.type = total.type
        if one is not None and two is not None and None not in (*one, *two):
            result.shape = ir.Shape(
                np.broadcast_shapes(tuple(int(n or 1) for n in one), tuple(int(n or 1) for n in two))
            )
        total = result
    return total
