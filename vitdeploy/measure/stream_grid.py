"""The grid of streams and batches in which a setting for throughput is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.evidence import Scenario
from vitdeploy.measure.scenarios import IMAGES, runs_in_query


@dataclass(frozen=True)
class StreamPoint:
    """Inferences at the same time, and the images of each."""

    streams: int
    batch: int


def list_stream_counts(threads: int) -> list[int]:
    """List numbers of streams from 1 to `threads`: the largest for each number of threads that a stream can get.

    Of two numbers with the same `threads // streams`, the smaller one leaves cores idle. So 8 threads give 1, 2, 4 and
    8 streams, and 64 threads 15 numbers.
    """
    return sorted({share: threads // share for share in (threads // n for n in range(1, threads + 1))}.values())


def list_batches(scenario: Scenario, smallest: int, usual: int, largest: int) -> list[int]:
    """List the powers of two, up to a whole query, that an artifact accepts; and its usual batch.

    Args:
        scenario: multi-stream (queries of 8 images) or offline (32).
        smallest: the smallest batch of the artifact.
        usual: the one that it was optimised for.
        largest: the largest one.
    """
    powers = [1 << n for n in range(IMAGES[scenario].bit_length())]
    return sorted({usual, *(batch for batch in powers if smallest <= batch <= min(largest, IMAGES[scenario]))})


def make_grid(scenario: Scenario, streams: Sequence[int], batches: Sequence[int]) -> list[StreamPoint]:
    """Return the points in which every stream has work in every query, by streams, then by batch."""
    return [
        StreamPoint(count, batch)
        for count in streams
        for batch in batches
        if count == 1 or runs_in_query(scenario, batch) >= count
    ]
