"""Compute the last layers for only those tokens that are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._token_axis import NORMS, find_input_axes, read_selection, set_size
from vitdeploy.session import Array

_Use = tuple[ir.Node, int]
"""A node, and the index of one of its inputs."""


class DropUnreadTokens(Pass):
    """Compute only those tokens that are read.

        x ─ norm ─ q, k, v ─ Attention ─ proj ─ Add x ─ MLP ─ norm ─ Gather 0 ─ head
     ─▶ x ─ norm ─ k, v ─ Attention ─ proj ─ Add x₀ ─ MLP ─ norm ─ head              with q and x₀ of token 0

    A classifier that reads its class token needs one of the 197 tokens that the queries, projection and MLP of the last
    block compute. The other 196 are wasted work: 7 % of a ViT-Base. Keys and values still cover every token, and each
    number that is read is computed as before.

    The selection moves up through all operators that treat each token by itself. A norm that others read in full is
    computed a second time for the selected tokens, so that linears still read norms. Left alone: a selection of more
    than half of the tokens (such as all but the class token), because it does not pay for its copy.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Narrow every value of which few tokens are read."""
        fired = 0
        for selection in list(_find_selections(graph)):
            narrowing = _plan_narrowing(graph, selection)
            if any(node.op_type == "MatMul" for node in narrowing.nodes):
                _narrow(graph, selection, narrowing)
                fired += 1
        if fired:
            graph.infer_shapes()
        return PassResult(fired)


@dataclass(frozen=True)
class _Selection:
    """A value of which only some tokens are read.

    Attributes:
        value: the value.
        axis: its axis of tokens.
        count: how many tokens it has.
        tokens: the indices of all tokens that are read, in order.
        readers: the nodes that select tokens.
        indices: the tokens that each of `readers` selects.
    """

    value: ir.Value
    axis: int
    count: int
    tokens: tuple[int, ...]
    readers: tuple[ir.Node, ...]
    indices: tuple[Array, ...]


@dataclass
class _Narrowing:
    """The changes that make a graph compute only the selected tokens. Each comes with the axis of tokens.

    Attributes:
        nodes: nodes that will compute fewer tokens, with the axis in their output.
        cuts: inputs at which tokens are selected from a value that others need in full.
        constants: inputs that are constants with an entry for each token.
    """

    nodes: dict[ir.Node, int] = field(default_factory=dict)
    cuts: dict[_Use, int] = field(default_factory=dict)
    constants: dict[_Use, int] = field(default_factory=dict)


# -------------------------------------------------------------------------------------- find what is read in part


def _find_selections(graph: Graph) -> Iterator[_Selection]:
    """Find values of which at most half of the tokens are read."""
    for value in [output for node in graph.nodes for output in node.outputs]:
        shape, readers = dims(value), [use.node for use in value.uses()]
        if shape is None or not readers or value.is_graph_output():
            continue
        reads = [read for node in readers if (read := read_selection(node, value, shape)) is not None]
        axes = {axis for axis, _ in reads}
        if len(reads) < len(readers) or len(axes) != 1:
            continue
        axis = axes.pop()
        indices = tuple(read_indices for _, read_indices in reads)
        tokens = sorted({int(i) for reader_indices in indices for i in reader_indices.reshape(-1)})
        count = shape[axis]
        if count is not None and 0 < len(tokens) <= count // 2:
            yield _Selection(value, axis, count, tuple(tokens), tuple(readers), indices)


# ---------------------------------------------------------------------------- plan how far the selection moves up


def _plan_narrowing(graph: Graph, selection: _Selection) -> _Narrowing:
    """Move the selection up the graph as long as all readers of a value need the same tokens of it."""
    narrowing = _Narrowing()
    narrow_uses: dict[ir.Value, dict[_Use, int]] = {}
    for node in reversed(list(graph.nodes)):
        output = node.outputs[0]
        uses = narrow_uses.pop(output, {})
        axis: int | None = selection.axis if output is selection.value else _common_axis(output, uses)
        input_axes = None if axis is None else find_input_axes(node, axis, selection.count)
        if input_axes is None or axis is None:
            narrowing.cuts.update(uses)
            continue
        narrowing.nodes[node] = axis
        for index, input_axis in input_axes.items():
            value = operand(node, index)
            if constant(value) is not None:
                narrowing.constants[node, index] = input_axis
            else:
                narrow_uses.setdefault(value, {})[node, index] = input_axis
    for uses in narrow_uses.values():  # uses of the graph's inputs, which no node computes
        narrowing.cuts.update(uses)
    return narrowing


def _common_axis(value: ir.Value, uses: Mapping[_Use, int]) -> int | None:
    """Return the axis on which all readers of a value need only the selected tokens; None if one needs all tokens."""
    axes = set(uses.values())
    is_every_use = len(uses) == len(value.uses()) and not value.is_graph_output()
    return axes.pop() if is_every_use and len(axes) == 1 else None


# ---------------------------------------------------------------------------------------------- rewrite the graph


def _narrow(graph: Graph, selection: _Selection, narrowing: _Narrowing) -> None:
    tokens = np.array(selection.tokens, np.int64)
    for node, axis in narrowing.nodes.items():
        if node.op_type == "Reshape":
            sizes = array(node.inputs[1]).copy()
            sizes[axis] = len(tokens) if sizes[axis] > 0 else sizes[axis]
            node.replace_input_with(1, graph.initializer(sizes, f"{node.name}/selected_shape"))
        set_size(node.outputs[0], axis, len(tokens))
    for (node, index), axis in narrowing.constants.items():
        numbers = np.take(array(node.inputs[index]), tokens, axis=axis)
        node.replace_input_with(index, graph.initializer(numbers, f"{node.name}/selected_{index}"))
    selected: dict[tuple[ir.Value, int], ir.Value] = {}
    for (node, index), axis in narrowing.cuts.items():
        node.replace_input_with(index, _select_tokens(graph, operand(node, index), axis, tokens, selected))
    for reader, indices in zip(selection.readers, selection.indices, strict=True):
        _select_again(graph, reader, np.searchsorted(tokens, indices), selection.axis)


def _select_tokens(
    graph: Graph, value: ir.Value, axis: int, tokens: Array, selected: dict[tuple[ir.Value, int], ir.Value]
) -> ir.Value:
    """Return the selected tokens of a value; for the output of a norm of each token, the norm of those.

    `selected` holds the results by value and axis, so that all readers of a value share one.
    """
    if (value, axis) in selected:
        return selected[value, axis]
    node, tape = value.producer(), ir.tape.Tape()
    if node is not None and node.op_type in NORMS and find_input_axes(node, axis, len(tokens)) is not None:
        source = _select_tokens(graph, operand(node, 0), axis, tokens, selected)
        attributes = {key: a.value for key, a in node.attributes.items() if a.value is not None}
        module, _, op_name = (node.name or "").rpartition("/")
        result = tape.op(node.op_type, [source, *node.inputs[1:]], attributes, name=f"{module}.selected/{op_name}")
        node = source.producer()
    else:
        name = (value if node is None else node).name or ""
        indices = graph.initializer(tokens, f"{name}/selected")
        result = tape.op("Gather", [value, indices], {"axis": axis}, name=f"{name}/select")
    new = next(iter(tape.nodes))
    new.name = graph.fresh_name(new.name or new.op_type)
    _insert_behind(graph, node, new)
    result.name, result.type, result.shape = f"{new.name}:0", value.type, value.shape
    set_size(result, axis, len(tokens))
    selected[value, axis] = result
    return result


def _insert_behind(graph: Graph, node: ir.Node | None, new: ir.Node) -> None:
    if node is None:
        graph.model.graph.insert_before(next(iter(graph.nodes)), new)
    else:
        graph.model.graph.insert_after(node, new)


def _select_again(graph: Graph, reader: ir.Node, indices: Array, axis: int) -> None:
    """Let a reader select its tokens from the narrowed value. A Slice becomes a Gather."""
    tape = ir.tape.Tape()
    places = graph.initializer(indices, f"{reader.name}/places")
    result = tape.op("Gather", [operand(reader, 0), places], {"axis": axis}, name=reader.name)
    graph.replace([reader], tape, reader.outputs[0], result)
