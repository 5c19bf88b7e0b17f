"""Merge the most similar tokens behind the attention of chosen blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._apply_merges import apply_merges
from vitdeploy.passes._plan_removals import plan_removals


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
        plan, refused = plan_removals(graph, dict(self.schedule), self.unraised, _half)
        if plan is None:
            return PassResult(0, refused)
        apply_merges(graph, plan)
        return PassResult(len(plan.removals), refused)


class Mergeable(NamedTuple):
    """The blocks behind which tokens can be merged, all in one model, and the reason for each of the others.

    Attributes:
        blocks: their numbers, in order.
        patches: the number of patches in front of them; 0 without a block.
        refused: the place, such as `block 3`, and the reason.
    """

    blocks: tuple[int, ...]
    patches: int
    refused: dict[str, str]


def find_mergeable(graph: Graph, blocks: Sequence[int], unraised: Mapping[str, str]) -> Mergeable:
    """Return the blocks among `blocks` behind which a token can be merged, of a raised and folded graph."""
    plan, refused = plan_removals(graph, dict.fromkeys(blocks or (0,), 1), unraised, _half)
    if plan is None:
        return Mergeable((), 0, dict(sorted(refused.items(), key=lambda item: int(item[0].split()[1]))))
    patches = plan.follower.counts[0] - plan.follower.special
    return Mergeable(tuple(removal.block for removal in plan.removals), patches, refused)


def _half(patches: int) -> int:
    """Return how many patches can be merged at once: those of one of the two halves."""
    return (patches + 1) // 2 if patches > 1 else 0
