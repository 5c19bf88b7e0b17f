"""Schedules for merging tokens that are worth a try: few bulk merges, and a merge in every block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from vitdeploy.recipe import Schedule

# Few bulk merges: the depth of each as a share of the blocks, and the share of the patches left there that it removes.
# Measured on DeiT-Tiny, two merges of 0.3 and 0.5 at a quarter and a half are faster than eleven small ones.
_BULK: tuple[tuple[tuple[float, float], ...], ...] = (
    ((1 / 2, 1 / 4),),
    ((1 / 2, 1 / 2),),
    ((1 / 4, 1 / 4),),
    ((1 / 4, 1 / 2),),
    ((1 / 4, 1 / 4), (1 / 2, 1 / 4)),
    ((1 / 4, 0.3), (1 / 2, 1 / 2)),
    ((1 / 4, 1 / 2), (1 / 2, 1 / 2)),
    ((1 / 12, 1 / 2), (1 / 2, 1 / 2)),
)
# The same number in every block, as published for 196 patches (Bolya et al., Token Merging, 2023): 8 and 13.
_PER_BLOCK = (8 / 196, 13 / 196)


def list_schedules(blocks: Sequence[int], patches: int, depth: int) -> list[dict[int, int]]:
    """List schedules, from the most tokens left to the fewest.

    Args:
        blocks: the blocks behind which tokens can be merged, in order; at least one.
        patches: the number of patches in front of them.
        depth: the number of blocks of the model.
    """
    bulk = [_place_bulk(merges, blocks, patches, depth) for merges in _BULK]
    even = [_place_evenly(share, blocks, patches) for share in _PER_BLOCK]
    unique = {tuple(schedule.items()): schedule for schedule in (*bulk, *even) if schedule}
    return sorted(unique.values(), key=lambda schedule: -sum(count_left(schedule, depth)))


def count_left(schedule: Schedule, depth: int) -> list[int]:
    """Return how many tokens fewer there are behind each block, as numbers of at most 0."""
    return list(accumulate(-schedule.get(block, 0) for block in range(depth)))


def removes_more(schedule: Schedule, other: Schedule) -> bool:
    """Return whether behind every block there are no more tokens than with the other schedule, and somewhere fewer."""
    depth = 1 + max((*schedule, *other), default=0)
    pairs = list(zip(count_left(schedule, depth), count_left(other, depth), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def drop_slower(schedules: Sequence[Schedule]) -> list[Schedule]:
    """Leave out those that another makes needless."""
    return [one for one in schedules if not any(makes_needless(other, one) for other in schedules)]


def makes_needless(schedule: Schedule, other: Schedule) -> bool:
    """Return whether a schedule removes more tokens than another one with no more merges, so it computes less."""
    return len(schedule) <= len(other) and removes_more(schedule, other)


def _place_bulk(
    merges: Sequence[tuple[float, float]], blocks: Sequence[int], patches: int, depth: int
) -> dict[int, int]:
    schedule: dict[int, int] = {}
    left = patches
    for position, share in merges:
        block = min(blocks, key=lambda block: (abs(block - round(position * depth)), block))
        removed = min(int(share * left), left // 2)
        if removed < 1 or block in schedule:
            return {}  # too few blocks or patches for this one
        schedule[block] = removed
        left -= removed
    return schedule


def _place_evenly(share: float, blocks: Sequence[int], patches: int) -> dict[int, int]:
    schedule: dict[int, int] = {}
    left = patches
    for block in blocks:
        removed = min(max(1, round(share * patches)), left // 2)
        if removed < 1:
            break
        schedule[block] = removed
        left -= removed
    return schedule
