"""Give a graph the rows that another one selected, so that both can be compared row by row."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand
from vitdeploy.graph.selection import find_selected
from vitdeploy.session import Array

_MASKED_BELOW = -1e4
"""Scores below are those of masked rows, which are never selected: minus infinity, or a number that stands for it."""


def list_selections(graph: Graph) -> tuple[str, ...]:
    """Return the names of the TopK nodes of a graph with outputs whose rows they select; empty for other graphs."""
    if not find_selected(graph):
        return ()
    return tuple(node.name or "" for node in graph.nodes if node.op_type == "TopK")


def expose_selections(graph: Graph, selections: tuple[str, ...]) -> Graph:
    """Return a copy of a graph with the scores and the indices of each selection as further outputs."""
    copy = Graph(graph.model.clone())
    for node in [n for n in copy.nodes if n.name in selections]:
        _add_output(copy, operand(node, 0))
        copied = ir.Value(name=indices_of(node.name or ""), type=ir.TensorType(ir.DataType.INT64))
        copy.model.graph.append(ir.Node("", "Identity", [node.outputs[1]], outputs=[copied], name=copied.name))
        copy.model.graph.outputs.append(copied)
    return copy


def force_selections(graph: Graph, selections: tuple[str, ...]) -> Graph:
    """Return a copy of a graph whose selections are inputs, and whose scores are outputs.

        scores ─ TopK ─ values, indices   ─▶   scores ─ GatherElements(indices) ─ values      indices: an input

    Rounding changes which rows are selected, and in which order: a comparison of the rows would show little else.
    """
    copy = Graph(graph.model.clone())
    for node in [n for n in copy.nodes if n.name in selections]:
        scores, (values, indices) = operand(node, 0), node.outputs[:2]
        given = ir.Value(name=indices_of(node.name or ""), type=ir.TensorType(ir.DataType.INT64), shape=indices.shape)
        copy.model.graph.inputs.append(given)
        tape = ir.tape.Tape()
        attributes = {"axis": node.attributes.get_int("axis", -1)}
        selected = tape.op("GatherElements", [scores, given], attributes, name=f"{node.name}/selected")
        same = tape.op("Identity", [given], name=f"{node.name}/given")
        selected.shape, selected.type, same.type = values.shape, values.type, ir.TensorType(ir.DataType.INT64)
        names = values.name, indices.name
        ir.convenience.replace_nodes_and_values(
            copy.model.graph, node, [node], list(tape.nodes), [values, indices], [selected, same]
        )
        selected.name, same.name = names
        _add_output(copy, scores)
    return copy


def score_outputs(graph: Graph, selections: tuple[str, ...]) -> frozenset[str]:
    """Return the names of the outputs with scores that `expose_selections` and `force_selections` add."""
    outputs = {value.name for value in graph.model.graph.outputs}
    scores = (operand(node, 0) for node in graph.nodes if node.name in selections)
    return frozenset(value.name or "" for value in scores) - outputs


def indices_of(selection: str) -> str:
    """Return the name of the output of `expose_selections`, and of the input of `force_selections`."""
    return f"{selection}/indices"


def drop_masked(
    reference: Mapping[str, Array], other: Mapping[str, Array], scores: Collection[str]
) -> dict[str, tuple[Array, Array]]:
    """Return the outputs of both in pairs, by name; of `scores` without the rows that the reference masks."""
    pairs = {name: (value, other[name]) for name, value in reference.items()}
    for name in scores:
        is_score = reference[name] > _MASKED_BELOW
        pairs[name] = reference[name][is_score], other[name][is_score]
    return pairs


def _add_output(graph: Graph, value: ir.Value) -> None:
    if not value.is_graph_output() and not value.is_graph_input():
        graph.model.graph.outputs.append(value)
