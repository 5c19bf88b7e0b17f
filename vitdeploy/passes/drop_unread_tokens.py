"""Compute the last tokens' work only for those that are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.session import Array

_ONE_BY_ONE = {
    "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where",
}  # fmt: skip
"""Each output number is computed from the numbers at its place, with ONNX's broadcasting."""

_NORMS = {"LayerNormalization", "RMSNormalization"}
_CORE_INPUTS = 4  # q, k, v and bias; with more of them it keeps a cache

_Shape = tuple[int | None, ...]


class DropUnreadTokens(Pass):
    """What only a few tokens are read of is computed for those tokens alone.

        x ─ norm ─ q, k, v ─ Attention ─ proj ─ Add x ─ MLP ─ norm ─ Gather 0 ─ head
     ─▶ x ─ norm ─ k, v ─ Attention ─ proj ─ Add x₀ ─ MLP ─ norm ─ head              with q and x₀ of token 0

    A classifier that reads its class token uses one of 197 tokens that the last block's MLP, projection and queries
    give: all others are work for nothing, 7 % of a ViT-Base. Keys and values still see every token, and each number
    that is read is computed as before. Tokens are selected as far up as operators go that treat each by itself; a norm
    that others read in full is computed again for the selected ones, so that linears go on reading norms.
    Selecting more than half of the tokens (all but the class token) is not worth a copy.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Narrow whatever is read in part."""
        fired = 0
        for selection in list(_selections(graph)):
            reach = _reach(graph, selection)
            if any(node.op_type == "MatMul" for node in reach.nodes):
                _narrow(graph, selection, reach)
                fired += 1
        if fired:
            graph.infer_shapes()
        return PassResult(fired)


@dataclass(frozen=True)
class _Selection:
    """All that is read of a value: the tokens of `axis`, in order; `readers` select them, each its own: `taken`."""

    value: ir.Value
    axis: int
    count: int
    tokens: tuple[int, ...]
    readers: tuple[ir.Node, ...]
    taken: tuple[Array, ...]


@dataclass
class _Reach:
    """What a selection narrows.

    Attributes:
        nodes: that compute fewer tokens, with the axis of tokens in their output.
        cuts: (reader, index) where tokens are selected from a value that is needed in full, with its axis.
        constants: (reader, index) of constants that hold something for each token, with their axis.
    """

    nodes: dict[ir.Node, int] = field(default_factory=dict)
    cuts: dict[tuple[ir.Node, int], int] = field(default_factory=dict)
    constants: dict[tuple[ir.Node, int], int] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------- what is read


def _selections(graph: Graph) -> Iterator[_Selection]:
    """Values of which less than half of the tokens are read."""
    for value in [output for node in graph.nodes for output in node.outputs]:
        shape, readers = dims(value), [use.node for use in value.uses()]
        if shape is None or not readers or value.is_graph_output():
            continue
        found = [_taken(node, value, shape) for node in readers]
        axes = {axis for taken in found if taken is not None for axis in (taken[0],)}
        if None in found or len(axes) != 1:
            continue
        axis = axes.pop()
        taken = tuple(t[1] for t in found if t is not None)
        tokens = sorted({int(i) for indices in taken for i in indices.reshape(-1)})
        count = shape[axis]
        if count is not None and 0 < len(tokens) <= count // 2:
            yield _Selection(value, axis, count, tuple(tokens), tuple(readers), taken)


def _taken(node: ir.Node, value: ir.Value, shape: _Shape) -> tuple[int, Array] | None:
    """The axis and the places that a Gather or Slice takes from `value`; an index of rank 0 drops the axis."""
    if node.domain != "" or not node.inputs or node.inputs[0] is not value:
        return None
    axis, places = None, None
    if node.op_type == "Gather" and constant(node.inputs[1]) is not None:
        axis, places = node.attributes.get_int("axis", 0), array(node.inputs[1])
    elif node.op_type == "Slice" and all(constant(v) is not None for v in node.inputs[1:]) and len(node.inputs) > 3:
        starts, ends, axes, *steps = [array(v).reshape(-1).tolist() for v in node.inputs[1:]]
        if len(axes) == 1:
            axis = axes[0]
            size = shape[axis % len(shape)]
            places = None if size is None else np.arange(size)[slice(starts[0], ends[0], steps[0][0] if steps else 1)]
    if axis is None or places is None or places.ndim > 1 or not 0 < axis % len(shape) < len(shape) - 1:
        return None  # the first axis is the batch, the last one channels
    size = shape[axis % len(shape)]
    return None if size is None else (axis % len(shape), places.astype(np.int64) % size)


# ---------------------------------------------------------------------------------------------- how far it reaches


def _reach(graph: Graph, selection: _Selection) -> _Reach:
    """From the selection up, as far as every reader of a value wants the same tokens of it."""
    found = _Reach()
    wanted: dict[ir.Value, dict[tuple[ir.Node, int], int]] = {}
    for node in reversed(list(graph.nodes)):
        output = node.outputs[0]
        uses = wanted.pop(output, {})
        if output is selection.value:
            axis: int | None = selection.axis
        else:
            axis = _agreed(output, uses)
        inputs = None if axis is None else _through(node, axis, selection.count)
        if inputs is None or axis is None:
            found.cuts.update(uses)
            continue
        found.nodes[node] = axis
        for index, place in inputs.items():
            value = operand(node, index)
            if constant(value) is not None:
                found.constants[node, index] = place
            else:
                wanted.setdefault(value, {})[node, index] = place
    for uses in wanted.values():  # of the graph's own inputs
        found.cuts.update(uses)
    return found


def _agreed(value: ir.Value, uses: Mapping[tuple[ir.Node, int], int]) -> int | None:
    """The axis on which all readers of a value want the selected tokens; None where one wants them all."""
    axes = set(uses.values())
    whole = len(uses) == len(value.uses()) and not value.is_graph_output()
    return axes.pop() if whole and len(axes) == 1 else None


def _through(node: ir.Node, axis: int, count: int) -> dict[int, int] | None:
    """The axis of tokens in each input that has one, if the output's tokens on `axis` need no others; else None."""
    shapes = [None if v is None else dims(v) for v in node.inputs]
    output, op = dims(node.outputs[0]), node.op_type
    alone = node.domain == "" and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    if not alone or output is None or not shapes or shapes[0] is None:
        return None
    if op in _ONE_BY_ONE:
        return _broadcast(shapes, len(output), axis, count)
    if op in _NORMS:
        return {0: axis} if axis < node.attributes.get_int("axis", -1) % len(output) else None
    if op == "MatMul":
        by_rows = constant(node.inputs[1]) is not None and len(shapes[0]) == len(output) and axis < len(output) - 1
        return {0: axis} if by_rows and len(shapes[1] or ()) == 2 else None
    if op == "Transpose":
        perm = node.attributes.get_ints("perm") if "perm" in node.attributes else range(len(output))[::-1]
        return {0: perm[axis]}
    if op == "Reshape":
        place = _same_place(shapes[0], output, axis)
        known = constant(node.inputs[1]) is not None
        return None if place is None or not known or not _copies(node, axis, place) else {0: place}
    if op == "Attention":
        return _of_queries(node, shapes, axis, count)
    return None


def _broadcast(shapes: Iterable[_Shape | None], rank: int, axis: int, count: int) -> dict[int, int] | None:
    found = {}
    for index, shape in enumerate(shapes):
        if shape is None:
            return None
        place = axis - rank + len(shape)
        if place >= 0 and shape[place] != 1:
            if shape[place] != count:
                return None
            found[index] = place
    return found


def _of_queries(node: ir.Node, shapes: list[_Shape | None], axis: int, count: int) -> dict[int, int] | None:
    """An attention's queries do not see each other."""
    inputs = [v for v in node.inputs if v is not None]
    plain = len(inputs) <= _CORE_INPUTS and not node.attributes.get_int("is_causal", 0)
    if not plain or axis != 2 or len(shapes[0] or ()) != 4:  # (batch, heads, tokens, size)
        return None
    bias = None if len(shapes) < _CORE_INPUTS else node.inputs[3]
    of_bias = {} if bias is None else _broadcast([dims(bias)], 4, axis, count)
    return None if of_bias is None else {0: axis, **({3: of_bias[0]} if of_bias else {})}


def _same_place(before: _Shape, after: _Shape, axis: int) -> int | None:
    """Which axis of the input is `axis` of a Reshape's output, untouched: as much stands before it and behind it."""
    for place, size in enumerate(before):
        same = size == after[axis] and _numbers(before[:place]) == _numbers(after[:axis])
        if same and _numbers(before[place + 1 :]) == _numbers(after[axis + 1 :]):
            return place
    return None


def _numbers(shape: _Shape) -> tuple[int, int]:
    """How many numbers a shape has, and how many sizes in it are open."""
    return math.prod(n for n in shape if n is not None), shape.count(None)


def _copies(node: ir.Node, axis: int, place: int) -> bool:
    """Whether a size of 0 in a Reshape at the axis of tokens copies the input's axis of tokens."""
    zero = array(node.inputs[1]).tolist()[axis] == 0
    return not zero or (axis == place and not node.attributes.get_int("allowzero", 0))


# ------------------------------------------------------------------------------------------------------- rewriting


def _narrow(graph: Graph, selection: _Selection, reach: _Reach) -> None:
    tokens = np.array(selection.tokens, np.int64)
    for node, axis in reach.nodes.items():
        if node.op_type == "Reshape":
            sizes = array(node.inputs[1]).copy()
            sizes[axis] = len(tokens) if sizes[axis] > 0 else sizes[axis]
            node.replace_input_with(1, graph.initializer(sizes, f"{node.name}/selected_shape"))
        _shorten(node.outputs[0], axis, len(tokens))
    for (node, index), axis in reach.constants.items():
        taken = np.take(array(node.inputs[index]), tokens, axis=axis)
        node.replace_input_with(index, graph.initializer(taken, f"{node.name}/selected_{index}"))
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for (node, index), axis in reach.cuts.items():
        node.replace_input_with(index, _selected(graph, operand(node, index), axis, tokens, made))
    for reader, taken in zip(selection.readers, selection.taken, strict=True):
        _read_anew(graph, reader, np.searchsorted(tokens, taken), selection.axis)


def _selected(
    graph: Graph, value: ir.Value, axis: int, tokens: Array, made: dict[tuple[ir.Value, int], ir.Value]
) -> ir.Value:
    """The selected tokens of a value, once for all readers; of a norm's output, the norm of the selected tokens."""
    if (value, axis) in made:
        return made[value, axis]
    node, tape = value.producer(), ir.tape.Tape()
    if node is not None and node.op_type in _NORMS:
        source = _selected(graph, operand(node, 0), axis, tokens, made)
        attributes = {key: a.value for key, a in node.attributes.items() if a.value is not None}
        stem, _, kind = (node.name or "").rpartition("/")
        result = tape.op(node.op_type, [source, *node.inputs[1:]], attributes, name=f"{stem}.selected/{kind}")
        node = source.producer()
    else:
        stem = (value if node is None else node).name or ""
        places = graph.initializer(tokens, f"{stem}/selected")
        result = tape.op("Gather", [value, places], {"axis": axis}, name=f"{stem}/select")
    _insert_behind(graph, node, next(iter(tape.nodes)))
    result.name, result.type, result.shape = f"{next(iter(tape.nodes)).name}:0", value.type, value.shape
    _shorten(result, axis, len(tokens))
    made[value, axis] = result
    return result


def _insert_behind(graph: Graph, node: ir.Node | None, new: ir.Node) -> None:
    if node is None:
        graph.model.graph.insert_before(next(iter(graph.nodes)), new)
    else:
        graph.model.graph.insert_after(node, new)


def _read_anew(graph: Graph, reader: ir.Node, places: Array, axis: int) -> None:
    """Let what selected tokens select them from the shorter value; a Slice becomes a Gather."""
    tape = ir.tape.Tape()
    indices = graph.initializer(places, f"{reader.name}/places")
    result = tape.op("Gather", [operand(reader, 0), indices], {"axis": axis}, name=reader.name)
    graph.replace([reader], tape, reader.outputs[0], result)


def _shorten(value: ir.Value, axis: int, count: int) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([count if place == axis else size for place, size in enumerate(value.shape)])
