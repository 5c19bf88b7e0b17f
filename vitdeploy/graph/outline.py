"""A structure in short: blocks that are alike as one group, linears as counts and sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from vitdeploy.evidence import BlockGroup, BlockKind, LinearGroup, Outline
from vitdeploy.graph.structure import AttentionSite, Linear, Role, Structure

_IN_BLOCKS: tuple[Role, ...] = ("qkv", "proj", "fc1", "fc2")
_ROLES: tuple[Role, ...] = ("patch", *_IN_BLOCKS, "head", "other")


def outline(structure: Structure) -> Outline:
    """What `inspect` shows of a model: a stage of a hierarchical one makes a group, and so does each step down."""
    in_block: dict[int | None, list[Linear]] = {site.block: [] for site in structure.attention}
    outside: list[Linear] = []
    for linear in structure.linears:
        place = in_block.get(linear.block, outside) if linear.role in _IN_BLOCKS else outside
        place.append(linear)

    def likeness(site: AttentionSite) -> tuple[object, ...]:
        # Without what is added to the scores: Swin shifts every other block, which makes no stage of its own.
        sizes = (site.heads, site.head_size, site.value_size, site.tokens, site.key_tokens, site.windows)
        return *sizes, site.refused is None, _groups(in_block[site.block])

    counts = Counter(linear.role for linear in structure.linears)
    return Outline(
        blocks=tuple(_block_group(list(sites), in_block) for _, sites in groupby(structure.attention, key=likeness)),
        linears={role: counts[role] for role in _ROLES if counts[role]},
        outside=_groups(outside),
        layernorms=len(structure.norms),
    )


def _block_group(sites: list[AttentionSite], in_block: dict[int | None, list[Linear]]) -> BlockGroup:
    one = sites[0]
    return BlockGroup(
        first=one.block,
        last=sites[-1].block,
        kind=_kind(one),
        heads=one.heads,
        head_size=one.head_size,
        value_size=one.value_size,
        queries=one.tokens,
        keys=one.key_tokens,
        windows=one.windows,
        bias=tuple(dict.fromkeys(site.bias for site in sites if site.bias is not None)),
        linears=_groups(in_block[one.block]),
    )


def _kind(site: AttentionSite) -> BlockKind | None:
    if site.refused is not None:
        return "unraised"
    if site.tokens is None or site.key_tokens is None or site.windows is None:
        return None
    if site.tokens != site.key_tokens:
        return "fewer queries" if site.tokens < site.key_tokens else "fewer keys"
    return "global" if site.windows == 1 else "windowed"


def _groups(linears: Iterable[Linear]) -> tuple[LinearGroup, ...]:
    """By role and size, in the order of the roles."""
    found: dict[tuple[Role, tuple[int, int]], list[str]] = {}
    for linear in sorted(linears, key=lambda linear: _ROLES.index(linear.role)):
        found.setdefault((linear.role, _size(linear)), []).append(linear.name)
    return tuple(
        LinearGroup(role=role, count=len(names), k=k, n=n, names=tuple(names) if role not in _IN_BLOCKS else ())
        for (role, (k, n)), names in found.items()
    )


def _size(linear: Linear) -> tuple[int, int]:
    """K x N; from the weight's shape where an older vitdeploy wrote no size."""
    if linear.size is not None:
        return linear.size
    return (
        (linear.weight[0], linear.weight[1])
        if len(linear.weight) == 2
        else (
            math.prod(linear.weight[1:]),
            linear.weight[0],
        )
    )
