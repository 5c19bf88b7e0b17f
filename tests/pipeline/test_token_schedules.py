"""Which schedules the search for merges tries, and in which order."""

from __future__ import annotations

import pytest

from vitdeploy.pipeline.token_schedules import (
    count_left,
    drop_slower,
    list_schedules,
    makes_needless,
    removes_more,
)
from vitdeploy.recipe import TokensSpec, describe_schedule


def test_the_schedules_of_deit() -> None:
    schedules = list_schedules(range(11), 196, 12)
    assert [describe_schedule(schedule) for schedule in schedules if len(schedule) < 3] == [
        "6:49", "3:49", "6:98", "3:49,6:36", "3:98", "3:58,6:69", "3:98,6:49", "1:98,6:49"
    ]  # fmt: skip
    assert [schedule for schedule in schedules if len(schedule) > 2] == [
        dict.fromkeys(range(11), 8), dict.fromkeys(range(11), 13)
    ]  # fmt: skip


@pytest.mark.parametrize("patches", [2, 3, 5, 16, 64, 196, 1369])
@pytest.mark.parametrize("blocks", [[0], [0, 1, 2], [2, 5, 8], list(range(23))])
def test_every_merge_is_possible(blocks: list[int], patches: int) -> None:
    depth = 24
    schedules = list_schedules(blocks, patches, depth)
    assert schedules
    assert len({describe_schedule(schedule) for schedule in schedules}) == len(schedules)
    assert [
        TokensSpec.model_validate({"merge": describe_schedule(schedule)}).schedule for schedule in schedules
    ] == schedules
    totals = [sum(count_left(schedule, depth)) for schedule in schedules]
    assert totals == sorted(totals, reverse=True)
    for schedule in schedules:
        left = patches
        for block, removed in sorted(schedule.items()):
            assert block in blocks
            assert 1 <= removed <= left // 2
            left -= removed


def test_a_single_patch_cannot_be_merged() -> None:
    assert list_schedules([0, 1], 1, 2) == []


def test_more_is_more_behind_every_block() -> None:
    assert removes_more({3: 50}, {3: 40})
    assert removes_more({1: 40}, {3: 40})  # earlier
    assert removes_more({3: 40, 6: 1}, {3: 40})
    assert not removes_more({3: 40}, {3: 40})
    assert not removes_more({6: 90}, {3: 40})  # fewer at the end, and more in between
    assert not removes_more({3: 40}, {6: 90})


def test_what_another_makes_needless_is_not_timed() -> None:
    assert makes_needless({3: 50}, {3: 40})
    assert not makes_needless({3: 50, 4: 1}, {3: 50})  # one merge more may cost more than it saves
    assert drop_slower([{3: 40}, {3: 50}, {6: 90}, {3: 50, 6: 60}]) == [{3: 50}, {6: 90}, {3: 50, 6: 60}]
