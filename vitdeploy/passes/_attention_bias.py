"""Combine everything that is added to the scores of an attention into the one bias that `Attention` takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, operand, producer
from vitdeploy.passes._attention import MASKED


@dataclass(frozen=True)
class Bias:
    """One summand of the scores.

    Attributes:
        value: the numbers that are added, or a condition if `choices` is set.
        scale: a factor on them.
        windows: set when a constant is added to scores of this 5-D shape: (batch, windows, heads, n, n). The batch is
            None if it varies.
        choices: the number to add where the condition `value` is true, and the number where it is false.
    """

    value: ir.Value
    scale: float
    windows: tuple[int | None, ...] | None = None
    choices: tuple[float, float] | None = None

    @property
    def is_per_image(self) -> bool:
        """True for a mask over windows that must be repeated for each image of a varying batch."""
        return self.windows is not None and self.windows[0] is None


def merge_biases(
    tape: ir.tape.Tape, v: ir.Value, biases: tuple[Bias, ...], scores: ir.Value, name: str
) -> ir.Value | None:
    """Merge all `biases` of the `scores` (batch, heads, queries, keys) into one; None if they add nothing.

    With a varying batch, a mask over windows is repeated for each image. The batch of `v` tells how many there are:

        mask (windows, 1, n, n) + bias (1, heads, n, n) ─ Tile ─▶ (batch · windows, heads, n, n)
    """
    biases = tuple(b for b in biases if not _adds_nothing(b, scores))
    if not biases:
        return None
    summands = [_make_summand(tape, b, f"{name}/bias_{i}") for i, b in enumerate(biases) if not b.is_per_image]
    per_image = [_make_summand(tape, b, f"{name}/bias_{i}") for i, b in enumerate(biases) if b.is_per_image]
    if per_image:  # the Tile repeats a constant: all constants are added up first, and repeated together
        per_image += [s for s in summands if constant(s) is not None]
        summands = [s for s in summands if constant(s) is None]
        total = _add_up(tape, per_image, f"{name}/windows")
        summands.insert(0, _repeat_for_each_image(tape, v, total, f"{name}/windows"))
    return broadcast_mask(tape, _add_up(tape, summands, f"{name}/bias"), (dims(scores) or ())[-2:], name)


def is_idle(mask: ir.Value, scores_shape: tuple[int | None, ...]) -> bool:
    """Return whether a constant mask leaves every score as it is: all true, or all zero.

    A mask that is larger than the scores is not idle: adding it would repeat them. Batches that vary count as equal,
    because `Attention` refuses a mask with another batch than the scores.
    """
    expand = producer(mask, "Expand")
    value, shape = (operand(expand, 0) if expand is not None else mask), dims(mask)
    if constant(value) is None or shape is None or len(shape) > len(scores_shape):
        return False
    fits = all(n in (1, size) for n, size in zip(shape[::-1], scores_shape[::-1], strict=False))
    numbers = array(value)
    return fits and bool(numbers.all() if numbers.dtype == np.bool_ else not numbers.any())


def make_additive(tape: ir.tape.Tape, mask: ir.Value, dtype: ir.DataType | None, name: str) -> ir.Value:
    """Turn a constant boolean mask into numbers to add, which every target takes. Return any other mask unchanged.

    A mask with a row that lets no key pass is unchanged too: the result of such a row is up to the operator.
    """
    if constant(mask) is None or mask.dtype != ir.DataType.BOOL or dtype is None:
        return mask
    passes = array(mask)
    if passes.ndim == 0 or not passes.any(axis=-1).all():
        return mask
    numbers = np.where(passes, 0.0, MASKED).astype(dtype.numpy())
    return tape.initializer(ir.tensor(numbers, name=f"{name}/additive_mask"))


def broadcast_mask(tape: ir.tape.Tape, mask: ir.Value, scores_shape: tuple[int | None, ...], name: str) -> ir.Value:
    """Broadcast `mask` to the last two axes of the scores (queries, keys), as Add would.

    `Attention` does not: it pads a short last axis with minus infinity, and ONNX Runtime refuses a single row.
    """
    shape = dims(mask)
    if shape is None or shape[-2:] == scores_shape or None in scores_shape:
        return mask
    if constant(mask) is not None:
        numbers = array(mask)
        target_shape = np.broadcast_shapes(numbers.shape, [int(n or 1) for n in scores_shape])
        numbers = np.broadcast_to(numbers, target_shape).copy()
        return tape.initializer(ir.tensor(numbers, name=f"{name}/mask"))
    target_value = tape.initializer(ir.tensor(np.array(scores_shape, np.int64), name=f"{name}/mask_shape"))
    return tape.op("Expand", [mask, target_value], name=f"{name}/mask")


def _adds_nothing(bias: Bias, scores: ir.Value) -> bool:
    is_plain = constant(bias.value) is not None and bias.windows is None and bias.choices is None
    return is_plain and is_idle(bias.value, dims(scores) or ())


def _make_summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    """Bring the bias to the form of the scores: 4-D and scaled.

    A constant becomes a new one, because exporters share equal constants between nodes.
    """
    if constant(bias.value) is not None:
        return _make_constant_summand(tape, bias, name)
    if bias.choices is not None:
        yes, no = (
            tape.initializer(ir.tensor(np.array(bias.scale * number, np.float32), name=f"{name}/{label}"))
            for label, number in zip(("yes", "no"), bias.choices, strict=True)
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


def _make_constant_summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    if bias.scale == 1.0 and bias.windows is None and bias.choices is None:
        return bias.value
    numbers = array(bias.value)
    if bias.choices is not None:
        numbers = np.where(numbers, *bias.choices).astype(np.float32)
    if bias.windows is not None:
        batch, windows, _, rows, columns = (int(n or 1) for n in bias.windows)
        mask = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, (batch, windows, 1, rows, columns)))
        numbers = mask.reshape(batch * windows, -1, rows, columns)
    return tape.initializer(ir.tensor(numbers * np.array(bias.scale, numbers.dtype), name=name))


def _repeat_for_each_image(tape: ir.tape.Tape, v: ir.Value, bias: ir.Value, name: str) -> ir.Value:
    """Repeat a constant (windows, heads, n, n) for each image in v (batch · windows, heads, n, size).

    The batch is read from v and not from q: q must keep a single reader, or its scale does not fold into its linear.
    """
    windows, *rest = array(bias).shape

    def ints(label: str, values: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{name}/{label}"))

    size = tape.op("Shape", [v], {"start": 0, "end": 1}, name=f"{name}/all")
    images = tape.op("Div", [size, ints("number", [windows])], name=f"{name}/images")
    repeats = tape.op("Concat", [images, ints("ones", [1] * len(rest))], {"axis": 0}, name=f"{name}/times")
    result = tape.op("Tile", [bias, repeats], name=f"{name}/repeated")
    result.shape, result.type = ir.Shape([None, *rest]), bias.type
    return result


def _add_up(tape: ir.tape.Tape, summands: list[ir.Value], name: str) -> ir.Value:
    """Add the summands; constants are added right away."""
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
