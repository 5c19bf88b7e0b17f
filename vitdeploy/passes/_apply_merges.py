"""Rewrite a graph so that it merges tokens at planned places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.passes._follow_tokens import Follower, TokenAxis
from vitdeploy.passes._token_axis import set_size
from vitdeploy.passes._write_merge import Merged, MergeWriter

_BIAS = 3  # the input of an attention


@dataclass(frozen=True)
class Merge:
    """A place where tokens are merged.

    Attributes:
        block: the number of the block.
        site: the name of its attention.
        keys: of the attention, (B, heads, N, d).
        sum: the residual sum behind it, (B, N, C).
        special: the number of leading tokens that are not merged.
        count: N before any merge.
        removed: how many tokens fewer there are behind it.
    """

    block: int
    site: str
    keys: ir.Value
    sum: ir.Value
    special: int
    count: int
    removed: int


@dataclass(frozen=True)
class MergePlan:
    """The merges in the order of the graph, and what follows them.

    Attributes:
        merges: the merges.
        follower: the values behind them that have fewer tokens, and the changes that operators need.
        unmerged: the inputs, node and index, that need each patch at its place.
        outputs: the outputs of the graph that have a row for each token, by their number.
    """

    merges: Sequence[Merge]
    follower: Follower
    unmerged: dict[tuple[ir.Node, int], TokenAxis]
    outputs: dict[int, TokenAxis]


def apply_merges(graph: Graph, plan: MergePlan) -> None:
    """Merge the tokens of a graph as planned, in place."""
    follower, sums = plan.follower, [merge.sum for merge in plan.merges]
    merged = _write_merges(graph, plan)
    for (node, index), numbers in follower.constants.items():
        node.replace_input_with(index, graph.initializer(numbers, f"{node.name}/merged_{index}"))
    _add_biases(graph, follower, merged, plan.merges)
    for node, tokens in follower.means.items():
        _weigh_mean(graph, node, follower, tokens, merged)
    for value, tokens in follower.tokens.items():
        is_sum = value in sums  # it has the tokens from before its merge
        set_size(value, tokens.axis, follower.counts[sums.index(value)] if is_sum else follower.count(tokens))
    _put_back(graph, plan, merged)
    graph.infer_shapes()


def _write_merges(graph: Graph, plan: MergePlan) -> list[Merged]:
    """Write the nodes of each merge behind its sum. `places` are those behind all merges up to it."""
    merged: list[Merged] = []
    last_place = max((tokens.merges for tokens in (*plan.unmerged.values(), *plan.outputs.values())), default=0)
    following = dict(pairwise(graph.nodes))
    for number, merge in enumerate(plan.merges):
        readers, add = list(merge.sum.uses()), merge.sum.producer()
        assert add is not None
        writer = MergeWriter(merge.site)
        behind = writer.merge(
            merge.sum, merge.keys, merged[-1].sizes if merged else None,
            special=merge.special, count=plan.follower.counts[number], removed=merge.removed,
            channels=_size(merge.sum, -1), has_places=number < last_place,
        )  # fmt: skip
        if merged and merged[-1].places is not None and behind.places is not None:
            behind = replace(behind, places=writer.compose(merged[-1].places, behind.places))
        graph.insert_before(following[add], writer.tape)
        for use in readers:
            use.node.replace_input_with(use.idx, behind.tokens)
        merged.append(behind)
    return merged


def _add_biases(graph: Graph, follower: Follower, merged: Sequence[Merged], merges: Sequence[Merge]) -> None:
    """Add the logarithm of the sizes to the scores of each attention over merged tokens."""
    biases: dict[tuple[int, int, int], ir.Value] = {}
    for node, tokens in follower.keys.items():
        number, query = tokens.merges - 1, operand(node, 0)
        queries = follower.count(follower.tokens[query]) if query in follower.tokens else _size(query, 2)
        writer, key = MergeWriter(merges[number].site), (number, tokens.start, queries)
        if key not in biases:
            biases[key] = writer.log_sizes(merged[number].sizes, tokens.start, queries)
        own = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
        both = biases[key] if own is None else writer.op("bias_and_mask", "Add", own, biases[key])
        graph.insert_before(node, writer.tape)
        if len(node.inputs) <= _BIAS:
            node.resize_inputs(_BIAS + 1)
        node.replace_input_with(_BIAS, both)


def _weigh_mean(graph: Graph, node: ir.Node, follower: Follower, tokens: TokenAxis, merged: Sequence[Merged]) -> None:
    """Replace a mean over tokens by one that is weighted by their sizes."""
    writer = MergeWriter((node.name or "").rpartition("/")[0])
    whole = follower.counts[0] - tokens.start
    keepdims = node.attributes.get_int("keepdims", 1)
    sizes = merged[tokens.merges - 1].sizes
    mean = writer.mean(operand(node, 0), sizes, tokens.axis, tokens.start, whole, keepdims=keepdims)
    graph.replace([node], writer.tape, node.outputs[0], mean)


def _put_back(graph: Graph, plan: MergePlan, merged: Sequence[Merged]) -> None:
    """Give the operators and outputs that read patches at their places a token for each patch."""
    spread: dict[ir.Value, ir.Value] = {}
    for (node, index), tokens in plan.unmerged.items():
        value = operand(node, index)
        if value not in spread:
            writer = MergeWriter((node.name or "").rpartition("/")[0])
            spread[value] = _unmerge(writer, value, tokens, plan.follower, merged)
            graph.insert_before(node, writer.tape)
        node.replace_input_with(index, spread[value])
    outputs = graph.model.graph.outputs
    for index, tokens in plan.outputs.items():
        value = outputs[index]
        name, shape = value.name, value.shape
        writer = MergeWriter("outputs")
        source = merged[tokens.merges - 1].tokens if value is plan.merges[tokens.merges - 1].sum else value
        whole = _unmerge(writer, source, tokens, plan.follower, merged)
        graph.append(writer.tape)
        value.name, whole.name = f"{name}/merged", name
        whole.type, whole.shape = value.type, shape
        outputs[index] = whole


def _unmerge(
    writer: MergeWriter, value: ir.Value, tokens: TokenAxis, follower: Follower, merged: Sequence[Merged]
) -> ir.Value:
    """Write the nodes that spread the tokens of a value, on any axis, to all patches."""
    places = merged[tokens.merges - 1].places
    assert places is not None
    return writer.unmerge(value, places, tokens.axis, dims(value) or (), follower.special - tokens.start)


def _size(value: ir.Value, axis: int) -> int:
    """Return a size that is known to be fixed."""
    return (dims(value) or ())[axis] or 0
