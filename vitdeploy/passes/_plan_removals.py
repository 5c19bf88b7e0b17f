"""Plan where tokens are removed, and what follows from it for the operators behind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from vitdeploy.graph.flow import image_values, nodes_below
from vitdeploy.graph.model import Graph, dims, only_consumer, operand
from vitdeploy.graph.one_image import one_image
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.regions import assign_regions
from vitdeploy.graph.structure import AttentionSite
from vitdeploy.passes._follow_tokens import Follower, PlacesNeeded, TokenAxis
from vitdeploy.passes._special_tokens import TokensUnclear, count_special
from vitdeploy.passes._token_axis import find_input_axes

_TOKEN_AXIS = 1  # of (B, N, C)


@dataclass(frozen=True)
class Removal:
    """A place where tokens are removed.

    Attributes:
        block: the number of the block.
        site: the name of its attention.
        keys: of the attention, (B, heads, N, d).
        sum: the residual sum behind it, (B, N, C).
        special: the number of leading tokens that are never removed.
        count: N before any removal.
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
class RemovalPlan:
    """The removals in the order of the graph, and what follows them.

    Attributes:
        removals: the removals; none if nothing is removed.
        follower: the values behind them that have fewer tokens, and the changes that operators need.
        whole_inputs: the inputs, node and index, that need each patch at its place.
        outputs: the outputs of the graph that have a row for each token, by their number.
    """

    removals: Sequence[Removal]
    follower: Follower
    whole_inputs: dict[tuple[ir.Node, int], TokenAxis]
    outputs: dict[int, TokenAxis]


def plan_removals(
    graph: Graph, schedule: Mapping[int, int], unraised: Mapping[str, str], most: Callable[[int], int]
) -> tuple[RemovalPlan | None, dict[str, str]]:
    """Plan the removals that are possible. Return the plan, None without any, and the reason for each refused block.

    Args:
        graph: raised and folded; not changed.
        schedule: the number of a block, and how many tokens are removed behind its attention.
        unraised: the reason for each softmax that was not raised.
        most: returns how many patches of so many can be removed at once.
    """
    structure = assign_regions(graph, recognize(graph, dict(unraised)))
    sites = {site.block: site for site in structure.attention}
    refused: dict[str, str] = {}
    removals: list[Removal] = []
    depends = image_values(graph)
    for block, removed in sorted(schedule.items()):
        if removed == 0:
            continue
        try:
            removal = _find_removal(graph, sites, block, removed, depends)
            removals.append(replace(removal, special=_count_special(graph, removal.sum, depends)))
        except TokensUnclear as reason:
            refused[f"block {block}"] = str(reason)
    encoder = {site.nodes[0] for site in sites.values() if site.region in (None, "backbone", "encoder")}
    while removals:
        try:
            return _plan(graph, removals, encoder, most), refused
        except _Refusal as refusal:
            refused |= {f"block {removal.block}": str(refusal) for removal in removals if removal in refusal.removals}
            removals = [removal for removal in removals if removal not in refusal.removals]
    return None, refused


class _Refusal(Exception):
    """Why some removals are not possible."""

    def __init__(self, reason: str, removals: Collection[Removal]) -> None:
        super().__init__(reason)
        self.removals = removals


# ------------------------------------------------------------------------------------------ where tokens are removed


def _find_removal(
    graph: Graph, sites: Mapping[int, AttentionSite], block: int, removed: int, depends: Collection[ir.Value]
) -> Removal:
    """Return the place behind the attention of a block.

    Raises:
        TokensUnclear: there is none, or its tokens cannot be removed.
    """
    if not sites:
        raise TokensUnclear("the model has no attention, so it has no tokens to remove")
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
    return Removal(block, sites[block].name, operand(core, 1), total, 0, count, removed)


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


def _plan(graph: Graph, removals: list[Removal], encoder: Collection[str], most: Callable[[int], int]) -> RemovalPlan:
    """Follow the tokens of all removals to the end of the graph.

    Raises:
        _Refusal: some of them are not possible.
    """
    at = {removal.sum: removal for removal in removals}
    follower = Follower(removals[0].special, [removals[0].count])
    placed: list[Removal] = []
    whole_inputs: dict[tuple[ir.Node, int], TokenAxis] = {}
    for node in graph.nodes:
        try:
            follower.follow(node)
        except PlacesNeeded as reason:
            reads = [v for v in node.inputs if v in follower.tokens]
            if _leads_to(node, encoder) or any(follower.tokens[v].axis == 0 for v in reads):
                raise _Refusal(str(reason), placed[reason.first - 1 :]) from None
            whole_inputs |= {(node, i): follower.tokens[v] for i, v in enumerate(node.inputs) if v in follower.tokens}
        removal = at.get(node.outputs[0])
        if removal is not None:
            _place(follower, removal, placed, most)
    outputs = {i: follower.tokens[v] for i, v in enumerate(graph.model.graph.outputs) if v in follower.tokens}
    return RemovalPlan(placed, follower, whole_inputs, outputs)


def _place(follower: Follower, removal: Removal, placed: list[Removal], most: Callable[[int], int]) -> None:
    """Note that tokens are removed at a sum."""
    before = len(placed)
    count, special = follower.counts[-1], follower.special
    reads = [follower.tokens.get(value, TokenAxis(axis, 0)) for value, axis in ((removal.sum, 1), (removal.keys, 2))]
    if removal.special != special or any((read.removals, read.start) != (before, 0) for read in reads):
        raise _Refusal("it does not have the tokens of the blocks before it", [removal])
    patches = count - special
    if removal.removed > (limit := most(patches)):
        left = f"{'1 patch is' if patches == 1 else f'{patches} patches are'} {'left' if before else 'there'}"
        raise _Refusal(f"{removal.removed} tokens cannot be removed: {left}, at most {limit} can", [removal])
    placed.append(removal)
    follower.counts.append(count - removal.removed)
    follower.tokens[removal.sum] = TokenAxis(_TOKEN_AXIS, len(placed))


def _leads_to(node: ir.Node, encoder: Collection[str]) -> bool:
    """Return whether an operator is an attention of the encoder, or one follows."""
    return any(below.name in encoder for below in (node, *nodes_below(node.outputs)))
