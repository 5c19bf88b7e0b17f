"""The outline of a structure: groups of equal blocks, and counts and sizes of linears."""

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
    """Return what `inspect` shows of a model. Consecutive equal blocks, such as a stage, are one group."""
    in_block: dict[int | None, list[Linear]] = {site.block: [] for site in structure.attention}
    outside: list[Linear] = []
    for linear in structure.linears:
        linears = in_block.get(linear.block, outside) if linear.role in _IN_BLOCKS else outside
        linears.append(linear)

    def group_key(site: AttentionSite) -> tuple[object, ...]:
        # Without the bias: Swin shifts the windows of every other block, and both kinds belong to one stage.
        sizes = (site.heads, site.head_size, site.value_size, site.tokens, site.key_tokens, site.windows)
        return *sizes, site.refused is None, _group_linears(in_block[site.block])

    counts = Counter(linear.role for linear in structure.linears)
    return Outline(
        blocks=tuple(_block_group(list(sites), in_block) for _, sites in groupby(structure.attention, key=group_key)),
        linears={role: counts[role] for role in _ROLES if counts[role]},
        outside=_group_linears(outside),
        layernorms=len(structure.norms),
    )


def _block_group(sites: list[AttentionSite], in_block: dict[int | None, list[Linear]]) -> BlockGroup:
    first = sites[0]
    return BlockGroup(
        first=first.block,
        last=sites[-1].block,
        kind=_attention_kind(first),
        heads=first.heads,
        head_size=first.head_size,
        value_size=first.value_size,
        queries=first.tokens,
        keys=first.key_tokens,
        windows=first.windows,
        bias=tuple(dict.fromkeys(site.bias for site in sites if site.bias is not None)),
        linears=_group_linears(in_block[first.block]),
    )


def _attention_kind(site: AttentionSite) -> BlockKind | None:
    if site.refused is not None:
        return "unraised"
    if site.tokens is None or site.key_tokens is None or site.windows is None:
        return None
    if site.tokens != site.key_tokens:
        return "fewer queries" if site.tokens < site.key_tokens else "fewer keys"
    return "global" if site.windows == 1 else "windowed"


def _group_linears(linears: Iterable[Linear]) -> tuple[LinearGroup, ...]:
    """Group linears by role and size, in the order of the roles."""
    names_by_size: dict[tuple[Role, tuple[int, int]], list[str]] = {}
    for linear in sorted(linears, key=lambda linear: _ROLES.index(linear.role)):
        names_by_size.setdefault((linear.role, _size(linear)), []).append(linear.name)
    return tuple(
        LinearGroup(role=role, count=len(names), k=k, n=n, names=tuple(names) if role not in _IN_BLOCKS else ())
        for (role, (k, n)), names in names_by_size.items()
    )


def _size(linear: Linear) -> tuple[int, int]:
    """Return K x N, from the shape of the weight if an older vitdeploy wrote no size."""
    if linear.size is not None:
        return linear.size
    if len(linear.weight) == 2:
        return linear.weight[0], linear.weight[1]
    return math.prod(linear.weight[1:]), linear.weight[0]
