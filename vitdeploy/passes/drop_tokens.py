"""Drop the tokens of fixed positions behind the attention of chosen blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from pydantic import Field

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._apply_plan import put_back, rewrite_sizes
from vitdeploy.passes._follow_tokens import TokenAxis
from vitdeploy.passes._plan_removals import Removal, RemovalPlan, plan_removals
from vitdeploy.session import Array

_DROP = "/drop_tokens"


class DropTokens(Pass):
    """Drop the tokens of fixed positions behind the attention of chosen blocks, so that later blocks compute fewer.

        x ─ norm ─ q, k, v ─ Attention ─ proj ─ Add x ────────── MLP ─ block ─ block ─ mean
     ─▶ x ─ norm ─ q, k, v ─ Attention ─ proj ─ Add x ─ Gather ─ MLP ─ block ─ block ─ mean of those that are left

    The positions are the same for every image, so this is for fixed cameras. It is the baseline of `MergeTokens`, with
    the same plan and the same refusals. Class and register tokens stay. Where dense outputs read the patches at their
    places, a dropped patch gets the token of the patch that stands in for it.

    Attributes:
        stand_ins: the number of the block, from 0; the patches that are dropped behind its attention, by their number
            in the image, row by row; and the patch that stands in for each, which is left there.
        unraised: the reason for each softmax that was not raised. Their attentions count as blocks too.
    """

    stand_ins: Mapping[int, Mapping[int, int]] = Field(default_factory=dict)
    unraised: dict[str, str] = Field(default_factory=dict)

    def apply(self, graph: Graph) -> PassResult:
        """Drop behind each block that allows it."""
        schedule = {block: len(patches) for block, patches in self.stand_ins.items()}
        plan, refused = plan_removals(graph, schedule, self.unraised, _all_but_one)
        if plan is None:
            return PassResult(0, refused)
        _apply_drops(graph, plan, self.stand_ins)
        return PassResult(len(plan.removals), refused)


class KeysOf(NamedTuple):
    """The keys of the attention of a block, by which positions are chosen.

    Attributes:
        block: the number of the block.
        name: of the value, (B, heads, special + patches, d).
        special: the number of leading tokens that stay.
        removed: the number of patches to drop.
    """

    block: int
    name: str
    special: int
    removed: int


def find_keys(
    graph: Graph, schedule: Mapping[int, int], unraised: Mapping[str, str]
) -> tuple[list[KeysOf], dict[str, str]]:
    """Return the keys behind whose attention tokens can be dropped, in order, and the reason for each refused block."""
    plan, refused = plan_removals(graph, schedule, unraised, _all_but_one)
    removals = () if plan is None else plan.removals
    return [KeysOf(one.block, one.keys.name or "", one.special, one.removed) for one in removals], refused


def _all_but_one(patches: int) -> int:
    """Return how many patches can be dropped at once."""
    return max(0, patches - 1)


def _apply_drops(graph: Graph, plan: RemovalPlan, stand_ins: Mapping[int, Mapping[int, int]]) -> None:
    """Drop the tokens of a graph as planned, in place."""
    special = plan.follower.special
    left = np.arange(plan.follower.counts[0] - special)
    stand_in = left.copy()  # of each patch in the image, a patch that is left
    places: list[Array] = []
    behind: list[ir.Value] = []
    following = dict(pairwise(graph.nodes))
    for removal in plan.removals:
        dropped = stand_ins[removal.block]
        stays = ~np.isin(left, list(dropped))
        stand_in = np.array([dropped.get(int(patch), int(patch)) for patch in stand_in])
        indices = np.concatenate([np.arange(special), special + np.flatnonzero(stays)])
        left = left[stays]
        places.append(np.searchsorted(left, stand_in))
        behind.append(_write_drop(graph, removal, indices, following))
    rewrite_sizes(graph, plan)

    def spread(module: str, value: ir.Value, tokens: TokenAxis) -> tuple[ir.tape.Tape, ir.Value]:
        leading = special - tokens.start
        indices = np.concatenate([np.arange(leading), leading + places[tokens.removals - 1]])
        return _gather(f"{module}{_DROP}/put_back", value, indices, tokens.axis)

    put_back(graph, plan, behind, spread)
    graph.infer_shapes()


def _write_drop(graph: Graph, removal: Removal, indices: Array, following: Mapping[ir.Node, ir.Node]) -> ir.Value:
    """Write the Gather of the tokens that stay behind a sum. Return its output."""
    readers, add = list(removal.sum.uses()), removal.sum.producer()
    assert add is not None
    tape, tokens = _gather(f"{removal.site}{_DROP}/left", removal.sum, indices, 1)
    graph.insert_before(following[add], tape)
    for use in readers:
        use.node.replace_input_with(use.idx, tokens)
    return tokens


def _gather(name: str, value: ir.Value, indices: Array | Sequence[int], axis: int) -> tuple[ir.tape.Tape, ir.Value]:
    tape = ir.tape.Tape()
    numbers = tape.initializer(ir.tensor(np.asarray(indices, np.int64), name=f"{name}_tokens"))
    return tape, tape.op("Gather", [value, numbers], {"axis": axis}, name=name)
