"""Run several batches at the same time, and return their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT")


def run_ahead(
    run: Callable[[BatchT], ResultT], batches: Iterable[BatchT], streams: int
) -> Iterator[tuple[BatchT, ResultT]]:
    """Yield each batch with its result, in order, while others run.

    At most `streams` batches run, one more waits, and the next is prepared meanwhile, so that no stream is idle. A
    batch that fails raises its error in its place.

    Args:
        run: computes a batch; called by several threads.
        batches: read one by one, by the thread that reads the results.
        streams: batches at the same time; with one, nothing runs ahead.
    """
    if streams == 1:
        yield from ((batch, run(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(streams, thread_name_prefix="stream") as callers:
        running: deque[tuple[BatchT, Future[ResultT]]] = deque()
        try:
            for batch in batches:
                running.append((batch, callers.submit(run, batch)))
                if len(running) > streams:
                    oldest, future = running.popleft()
                    yield oldest, future.result()
            while running:
                oldest, future = running.popleft()
                yield oldest, future.result()
        finally:
            for _, future in running:
                future.cancel()
