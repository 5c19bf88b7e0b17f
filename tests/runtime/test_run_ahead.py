"""Batches overlap, come back in order, and fail in their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vitdeploy.runtime.run_ahead import run_ahead


def test_batches_overlap_and_stay_in_order() -> None:
    together = threading.Barrier(3)

    def run(batch: int) -> int:
        together.wait(timeout=300)  # passes only if three run at the same time
        return batch * batch

    assert list(run_ahead(run, range(9), 3)) == [(n, n * n) for n in range(9)]


def test_one_stream_runs_on_the_thread_of_the_caller() -> None:
    own = threading.get_ident()
    assert [ident for _, ident in run_ahead(lambda _: threading.get_ident(), range(3), 1)] == [own] * 3


def test_only_few_batches_are_prepared_ahead() -> None:
    prepared = []

    def batches() -> Iterator[int]:
        for number in range(100):
            prepared.append(number)
            yield number

    results = run_ahead(lambda batch: batch, batches(), 2)
    assert next(results) == (0, 0)
    assert len(prepared) == 3
    results.close()  # type: ignore[attr-defined]  it is a generator
    assert len(prepared) == 3


@pytest.mark.parametrize("streams", [1, 2])
def test_an_error_comes_in_the_place_of_its_batch(streams: int) -> None:
    results = run_ahead(lambda batch: 12 // batch, [3, 2, 0, 1], streams)
    assert [next(results), next(results)] == [(3, 4), (2, 6)]
    with pytest.raises(ZeroDivisionError):
        next(results)
