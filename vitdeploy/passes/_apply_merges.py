"""Rewrite a graph so that it merges tokens at planned places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.passes._apply_plan import put_back, rewrite_sizes
from vitdeploy.passes._follow_tokens import Follower, TokenAxis
from vitdeploy.passes._plan_removals import Removal, RemovalPlan
from vitdeploy.passes._token_axis import set_size
from vitdeploy.passes._write_merge import Merged, MergeWriter

_BIAS = 3  # the input of an attention
_TOKEN_AXIS = 1  # of the sum behind which a merge is written


def apply_merges(graph: Graph, plan: RemovalPlan) -> None:
    """Merge the tokens of a graph as planned, in place."""
    follower = plan.follower
    merged = _write_merges(graph, plan)
    rewrite_sizes(graph, plan)  # before biases, which are added to those that are cut
    _add_biases(graph, follower, merged, plan.removals)
    for node, tokens in follower.means.items():
        _weigh_mean(graph, node, follower, tokens, merged)

    def unmerge(module: str, value: ir.Value, tokens: TokenAxis) -> tuple[ir.tape.Tape, ir.Value]:
        writer, places = MergeWriter(module), merged[tokens.removals - 1].places
        assert places is not None
        whole = writer.unmerge(value, places, tokens.axis, dims(value) or (), follower.special - tokens.start)
        return writer.tape, whole

    put_back(graph, plan, [one.tokens for one in merged], unmerge)
    graph.infer_shapes()


def _write_merges(graph: Graph, plan: RemovalPlan) -> list[Merged]:
    """Write the nodes of each merge behind its sum. `places` are those behind all merges up to it."""
    merged: list[Merged] = []
    last_place = max((tokens.removals for tokens in (*plan.whole_inputs.values(), *plan.outputs.values())), default=0)
    following = dict(pairwise(graph.nodes))
    for number, merge in enumerate(plan.removals):
        readers, add = list(merge.sum.uses()), merge.sum.producer()
        assert add is not None
        writer = MergeWriter(merge.site)
        behind = writer.merge(
            merge.sum, merge.keys, merged[-1].sizes if merged else None,
            special=merge.special, count=plan.follower.counts[number], removed=merge.removed,
            channels=_size(merge.sum, -1), has_places=number < last_place,
        )  # fmt: skip
        behind.tokens.type, behind.tokens.shape = merge.sum.type, ir.Shape(merge.sum.shape or ())
        set_size(behind.tokens, _TOKEN_AXIS, plan.follower.counts[number + 1])  # an output may be these tokens
        if merged and merged[-1].places is not None and behind.places is not None:
            behind = replace(behind, places=writer.compose(merged[-1].places, behind.places))
        graph.insert_before(following[add], writer.tape)
        for use in readers:
            use.node.replace_input_with(use.idx, behind.tokens)
        merged.append(behind)
    return merged


def _add_biases(graph: Graph, follower: Follower, merged: Sequence[Merged], merges: Sequence[Removal]) -> None:
    """Add the logarithm of the sizes to the scores of each attention over merged tokens."""
    biases: dict[tuple[int, int, int], ir.Value] = {}
    for node, tokens in follower.keys.items():
        number, query = tokens.removals - 1, operand(node, 0)
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
    sizes = merged[tokens.removals - 1].sizes
    mean = writer.mean(operand(node, 0), sizes, tokens.axis, tokens.start, whole, keepdims=keepdims)
    graph.replace([node], writer.tape, node.outputs[0], mean)


def _size(value: ir.Value, axis: int) -> int:
    """Return a size that is known to be fixed."""
    return (dims(value) or ())[axis] or 0
