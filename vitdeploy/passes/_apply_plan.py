"""Rewrite what follows a removal of tokens, however they were removed: constants, sizes, and reads of all patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand
from vitdeploy.passes._follow_tokens import TokenAxis
from vitdeploy.passes._plan_removals import RemovalPlan
from vitdeploy.passes._token_axis import set_size

Spread = Callable[[str, ir.Value, TokenAxis], tuple[ir.tape.Tape, ir.Value]]
"""Writes the nodes, named after a module, that give each patch a token; returns them and the value with all patches."""


def rewrite_sizes(graph: Graph, plan: RemovalPlan) -> None:
    """Replace constants with the number of tokens in them, and correct the shapes of values with fewer tokens."""
    follower, sums = plan.follower, [removal.sum for removal in plan.removals]
    for (node, index), numbers in follower.constants.items():
        node.replace_input_with(index, graph.initializer(numbers, f"{node.name}/fewer_{index}"))
    for value, tokens in follower.tokens.items():
        is_sum = value in sums  # it has the tokens from before its removal
        set_size(value, tokens.axis, follower.counts[sums.index(value)] if is_sum else follower.count(tokens))


def put_back(graph: Graph, plan: RemovalPlan, behind: Sequence[ir.Value], spread: Spread) -> None:
    """Give the operators and outputs that read patches at their places a token for each patch.

    Args:
        graph: the graph.
        plan: the removals.
        behind: the tokens behind each of them.
        spread: writes the nodes for one value.
    """
    done: dict[ir.Value, ir.Value] = {}
    for (node, index), tokens in plan.whole_inputs.items():
        value = operand(node, index)
        if value not in done:
            tape, done[value] = spread((node.name or "").rpartition("/")[0], value, tokens)
            graph.insert_before(node, tape)
        node.replace_input_with(index, done[value])
    outputs = graph.model.graph.outputs
    for index, tokens in plan.outputs.items():
        value, number = outputs[index], tokens.removals - 1
        name = value.name
        tape, whole = spread("outputs", behind[number] if value is plan.removals[number].sum else value, tokens)
        graph.append(tape)
        value.name, whole.name = f"{name}/fewer", name
        whole.type, whole.shape = value.type, None if value.shape is None else ir.Shape(value.shape)
        set_size(whole, tokens.axis, plan.follower.counts[0] - tokens.start)
        outputs[index] = whole
