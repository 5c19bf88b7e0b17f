"""Merge the most similar tokens behind the attention of chosen blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import onnx_ir as ir
from pydantic import Field

from vitdeploy.graph.flow import image_values, nodes_below
from vitdeploy.graph.model import Graph, dims, only_consumer, operand
from vitdeploy.graph.one_image import one_image
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.regions import assign_regions
from vitdeploy.graph.structure import AttentionSite
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._apply_merges import Merge, MergePlan, apply_merges
from vitdeploy.passes._follow_tokens import Follower, PlacesNeeded, TokenAxis
from vitdeploy.passes._special_tokens import TokensUnclear, count_special
from vitdeploy.passes._token_axis import find_input_axes

_TOKEN_AXIS = 1  # of (B, N, C)


class MergeTokens(Pass):
    """Average the most similar tokens behind the attention of chosen blocks, so that later blocks compute fewer.

        x ─ norm ─ q, k, v ─ Attention ─ proj ─ Add x ─────────── MLP ─ block ─ block ─ mean
     ─▶ x ─ norm ─ q, k, v ─ Attention ─ proj ─ Add x ─ merge k ─ MLP ─ block with log(sizes) ─ mean weighted by sizes

    Patches are divided by turns into two halves. Each of the first half is compared with all of the second by the
    cosine of its key, the mean over heads, and those that are most similar are averaged with their match. A token
    counts in averages, as a key and in a mean as often as the patches that it stands for: equal tokens can be merged
    without a change. Idea: Bolya et al., Token Merging, 2023 (arXiv 2210.09461). Class and register tokens stay.

    Where dense outputs read the patches at their places, behind all attention over them, each patch gets the token
    that it was merged into. Refused: a block whose later layers need the places of patches, such as windows, rotary
    positions, a bias by position, a convolution; keys that are not the tokens themselves; tokens whose number varies.

    Attributes:
        schedule: the number of the block, from 0, and how many tokens are removed behind its attention.
        unraised: the reason for each softmax that was not raised. Their attentions count as blocks too.
    """

    schedule: tuple[tuple[int, int], ...] = ()
    unraised: dict[str, str] = Field(default_factory=dict)

    def apply(self, graph: Graph) -> PassResult:
        """Merge behind each block of the schedule that allows it."""
        structure = assign_regions(graph, recognize(graph, self.unraised))
        sites = {site.block: site for site in structure.attention}
        refused: dict[str, str] = {}
        merges: list[Merge] = []
        depends = image_values(graph)
        for block, removed in sorted(self.schedule):
            if removed == 0:
                continue
            try:
                merge = _find_merge(graph, sites, block, removed, depends)
                merges.append(replace(merge, special=_count_special(graph, merge.sum, depends)))
            except TokensUnclear as reason:
                refused[f"block {block}"] = str(reason)
        encoder = {site.nodes[0] for site in sites.values() if site.region in (None, "backbone", "encoder")}
        while merges:
            try:
                plan = _plan(graph, merges, encoder)
            except _Refusal as refusal:
                refused |= {f"block {merge.block}": str(refusal) for merge in merges if merge in refusal.merges}
                merges = [merge for merge in merges if merge not in refusal.merges]
            else:
                apply_merges(graph, plan)
                break
        return PassResult(len(merges), refused)


class _Refusal(Exception):
    """Why some merges are not possible."""

    def __init__(self, reason: str, merges: Collection[Merge]) -> None:
        super().__init__(reason)
        self.merges = merges


# ------------------------------------------------------------------------------------------- where tokens are merged


def _find_merge(
    graph: Graph, sites: Mapping[int, AttentionSite], block: int, removed: int, depends: Collection[ir.Value]
) -> Merge:
    """Return the place behind the attention of a block.

    Raises:
        TokensUnclear: there is none, or its tokens cannot be merged.
    """
    if not sites:
        raise TokensUnclear("the model has no attention, so it has no tokens to merge")
    if block not in sites:
        raise TokensUnclear(f"there is no such block: the model has blocks 0 to {max(sites)}")
    core = next((n for n in graph.nodes if n.name == sites[block].nodes[0]), None)
    if core is None or core.op_type != "Attention":
        raise TokensUnclear(f"its attention is not recognised: {sites[block].refused}")
    if (sites[block].windows or 1) > 1:
        raise TokensUnclear("its attention works in windows, which cannot lose tokens")
    if sites[block].tokens is None:
        raise TokensUnclear("the number of its tokens varies or is not known")
    total = _find_sum(core, depends)
    shape, query, keys = dims(total), dims(core.inputs[0]), dims(core.inputs[1])
    if (
        shape is None
        or query is None
        or keys is None
        or len(shape) != 3
        or not shape[2]
        or len(query) != 4
        or len(keys) != 4
    ):
        raise TokensUnclear("its tokens are arranged as a grid, which cannot lose tokens")
    count = shape[_TOKEN_AXIS]
    if count is None or keys[2] is None:
        raise TokensUnclear("the number of its tokens varies or is not known")
    if query[0] != shape[0] or query[2] != count:
        raise TokensUnclear("its attention works in windows, which cannot lose tokens")
    if count == 1:
        raise TokensUnclear("only one token goes on behind its attention")
    if not total.uses():
        raise TokensUnclear("no layer follows its attention")
    if keys[2] != count:
        raise TokensUnclear(f"its attention has {keys[2]} keys for {count} tokens, so keys do not tell which are alike")
    return Merge(block, sites[block].name, operand(core, 1), total, 0, count, removed)


def _count_special(graph: Graph, total: ir.Value, depends: Collection[ir.Value]) -> int:
    with one_image(graph):  # exporters compute with the size of the batch where it varies, which hides others
        return count_special(total, _TOKEN_AXIS, depends)


def _find_sum(core: ir.Node, depends: Collection[ir.Value]) -> ir.Value:
    """Return the residual sum behind an attention: the first Add of another computed tensor.

    Raises:
        TokensUnclear: there is none.
    """
    value = core.outputs[0]
    while (node := only_consumer(value)) is not None:
        others = [v for v in node.inputs if v is not None and v is not value and v in depends]
        if node.op_type == "Add" and others:
            return node.outputs[0]
        if others or not _treats_each_token(node):
            break
        value = node.outputs[0]
    raise TokensUnclear("no residual sum follows its attention directly")


def _treats_each_token(node: ir.Node) -> bool:
    axes = range(len(dims(node.outputs[0]) or ()))
    sizes = dims(node.outputs[0]) or ()
    return any(0 in (find_input_axes(node, axis, sizes[axis] or 0) or {}) for axis in axes)


# ------------------------------------------------------------------------------------- what later operators need


def _plan(graph: Graph, merges: list[Merge], encoder: Collection[str]) -> MergePlan:
    """Follow the tokens of all merges to the end of the graph.

    Raises:
        _Refusal: some of them are not possible.
    """
    at = {merge.sum: merge for merge in merges}
    follower = Follower(merges[0].special, [merges[0].count])
    placed: list[Merge] = []
    unmerged: dict[tuple[ir.Node, int], TokenAxis] = {}
    for node in graph.nodes:
        try:
            follower.follow(node)
        except PlacesNeeded as reason:
            reads = [v for v in node.inputs if v in follower.tokens]
            if _leads_to(node, encoder) or any(follower.tokens[v].axis == 0 for v in reads):
                raise _Refusal(str(reason), placed[reason.first - 1 :]) from None
            unmerged |= {(node, i): follower.tokens[v] for i, v in enumerate(node.inputs) if v in follower.tokens}
        merge = at.get(node.outputs[0])
        if merge is not None:
            _place(follower, merge, placed)
    outputs = {i: follower.tokens[v] for i, v in enumerate(graph.model.graph.outputs) if v in follower.tokens}
    return MergePlan(placed, follower, unmerged, outputs)


def _place(follower: Follower, merge: Merge, placed: list[Merge]) -> None:
    """Note that tokens are merged at a sum."""
    before = len(placed)
    count, special = follower.counts[-1], follower.special
    reads = [follower.tokens.get(value, TokenAxis(axis, 0)) for value, axis in ((merge.sum, 1), (merge.keys, 2))]
    if merge.special != special or any((read.merges, read.start) != (before, 0) for read in reads):
        raise _Refusal("it does not have the tokens of the blocks before it", [merge])
    patches = count - special
    if merge.removed > (most := (patches + 1) // 2 if patches > 1 else 0):
        left = "are left" if before else "are there"
        raise _Refusal(
            f"{merge.removed} tokens cannot be removed: {patches} patches {left}, at most {most} can", [merge]
        )
    placed.append(merge)
    follower.counts.append(count - merge.removed)
    follower.tokens[merge.sum] = TokenAxis(_TOKEN_AXIS, len(placed))


def _leads_to(node: ir.Node, encoder: Collection[str]) -> bool:
    """Return whether an operator is an attention of the encoder, or one follows."""
    return any(below.name in encoder for below in (node, *nodes_below(node.outputs)))
