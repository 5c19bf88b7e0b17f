"""The grid has every useful number of streams, and only batches that the artifact takes."""

from __future__ import annotations

import pytest

from vitdeploy.measure.stream_grid import StreamPoint, list_batches, list_stream_counts, make_grid


@pytest.mark.parametrize(
    ("threads", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (6, [1, 2, 3, 6]), (8, [1, 2, 4, 8])]
)
def test_streams_are_the_most_for_their_share_of_threads(threads: int, expected: list[int]) -> None:
    assert list_stream_counts(threads) == expected


@pytest.mark.parametrize("threads", [1, 5, 12, 64])
def test_every_share_of_the_threads_is_tried_once(threads: int) -> None:
    counts = list_stream_counts(threads)
    assert len({threads // count for count in counts}) == len(counts)
    assert {threads // count for count in counts} == {threads // count for count in range(1, threads + 1)}
    assert (counts[0], counts[-1]) == (1, threads)


def test_batches_are_powers_of_two_in_the_range_of_the_artifact() -> None:
    assert list_batches("offline", 1, 1, 64) == [1, 2, 4, 8, 16, 32]
    assert list_batches("multi-stream", 1, 1, 64) == [1, 2, 4, 8]
    assert list_batches("offline", 2, 5, 12) == [2, 4, 5, 8]
    assert list_batches("offline", 3, 3, 3) == [3], "a fixed batch"
    assert list_batches("multi-stream", 64, 64, 64) == [64]


def test_no_stream_is_without_work() -> None:
    grid = make_grid("multi-stream", [1, 2, 8], [1, 4, 8])
    assert grid == [
        StreamPoint(1, 1),
        StreamPoint(1, 4),
        StreamPoint(1, 8),
        StreamPoint(2, 1),
        StreamPoint(2, 4),
        StreamPoint(8, 1),
    ]
