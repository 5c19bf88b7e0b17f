"""Count the tokens in front of those of the patches: class, distillation and register tokens."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, operand
from vitdeploy.passes._token_axis import ELEMENT_WISE, find_input_axes, read_selection
from vitdeploy.session import Array


class TokensUnclear(Exception):
    """The tokens are not patches of one image behind special tokens. The message says what they are instead."""


def count_special(value: ir.Value, axis: int, depends: Collection[ir.Value]) -> int:
    """Return the number of special tokens, which all come first.

        class (1, 1, C) ─ Expand ─┐
        patches (B, 196, C) ───── Concat ─ Add positions ─ blocks ─ value (B, 197, C)       1 special token

    A token is special if it does not depend on the image where the tokens are put together.

    Args:
        value: the value. The shapes above it must be known, so give the graph those of one image if the batch varies.
        axis: its axis of tokens.
        depends: the values that depend on the image.

    Raises:
        TokensUnclear: there are several streams of patches, no patches, or special tokens behind the patches.
    """
    size = (dims(value) or ())[axis]
    if size is None:
        raise TokensUnclear("the number of its tokens varies")
    special = _find_special(value, axis, size, depends)
    count = int(special.sum())
    if count == len(special):
        raise TokensUnclear("its tokens do not come from the patches of an image")
    if not special[:count].all():
        raise TokensUnclear("its special tokens, such as a class token, are not the first ones")
    return count


def _find_special(value: ir.Value, axis: int, size: int, depends: Collection[ir.Value]) -> Array:
    """Return for each of the `size` tokens whether it is special."""
    chosen = np.arange(size)  # tokens of the first value, by their place in the one that the loop has reached
    while value in depends:
        node = value.producer()
        step = None if node is None else _step_up(node, value, axis, size, depends)
        if step is None:
            _check_origin(node)
            return np.zeros(len(chosen), bool)
        parts, axis, picked = step
        chosen = chosen if picked is None else picked[chosen]
        if len(parts) > 1:
            sizes = _part_sizes(parts, axis, size)
            special = [_find_special(part, axis, n, depends) for part, n in zip(parts, sizes, strict=True)]
            if sum(not part.all() for part in special) > 1:
                raise TokensUnclear("several streams of tokens are joined in it")
            return np.asarray(np.concatenate(special)[chosen])
        value = parts[0]
        size = (dims(value) or ())[axis] or size
    return np.ones(len(chosen), bool)


def _part_sizes(parts: list[ir.Value], axis: int, whole: int) -> list[int]:
    """Return how many tokens each part of a Concat has. One that is not known is what the others leave."""
    sizes = [(dims(part) or (None,) * (axis + 1))[axis] for part in parts]
    if sizes.count(None) > 1:
        raise TokensUnclear("the number of its special tokens is not known")
    rest = whole - sum(size for size in sizes if size is not None)
    return [rest if size is None else size for size in sizes]


def _check_origin(node: ir.Node | None) -> None:
    """Raise TokensUnclear unless a grid of patches becomes a sequence here: special tokens may hide in front of it."""
    shapes = [dims(value) for value in (node.inputs[0], node.outputs[0])] if node is not None else [None]
    is_known = all(shape is not None and None not in shape for shape in shapes)
    if node is None or node.op_type not in ("Reshape", "Flatten") or not is_known:
        raise TokensUnclear(f"its tokens cannot be traced to patches and special tokens ({node and node.op_type})")


def _step_up(
    node: ir.Node, value: ir.Value, axis: int, size: int, depends: Collection[ir.Value]
) -> tuple[list[ir.Value], int, Array | None] | None:
    """Return the values that the tokens of an output come from, their axis, and the tokens that are picked of them.

    Return None if the tokens begin here, such as where a grid of patches becomes a sequence.
    """
    shape, source = dims(value) or (), operand(node, 0) if node.inputs and node.inputs[0] is not None else None
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) % len(shape) == axis:
        return [v for v in node.inputs if v is not None], axis, None
    if node.op_type == "Split" and source is not None:
        if node.attributes.get_int("axis", 0) % len(shape) != axis:
            return [source], axis, None
        before = sum((dims(v) or ())[axis] or 0 for v in node.outputs[: node.outputs.index(value)])
        return [source], axis, np.arange(before, before + size)
    if source is not None and (read := read_selection(node, source, dims(source) or ())) is not None:
        if read[0] == axis and read[1].ndim == 1:
            return [source], axis, read[1]
        return ([source], axis, None) if read[1].ndim == 1 else None
    if node.op_type == "Expand" and source is not None and dims(source) is not None:
        source_axis = axis - len(shape) + len(dims(source) or ())
        return ([source], source_axis, None) if source_axis >= 0 else None
    axes = find_input_axes(node, axis, size)
    if axes is None and node.op_type in ELEMENT_WISE:  # with a size that is not known: only a sum's is
        axes = {i: axis for i, v in enumerate(node.inputs) if len(dims(v) or ()) == len(shape)}
    for index, input_axis in (axes or {}).items():
        if (above := node.inputs[index]) is not None and above in depends and (dims(above) or ())[input_axis] != 1:
            return [above], input_axis, None
    return None


def read_shape(node: ir.Node, index: int = 1) -> list[int] | None:
    """Return the numbers of a constant input, such as the shape of a Reshape; None if it is computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if constant(value) is None else [int(n) for n in array(value).reshape(-1)]
