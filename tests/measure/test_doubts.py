"""Doubts that follow from the samples, and how rarely they are raised about sound ones."""

import numpy as np

from tests.evidence import run
from vitdeploy.evidence import Run
from vitdeploy.measure import doubts


def timed(name: str, logs: np.ndarray, **more: object) -> Run:
    return run(name, 10.0, blocks=tuple((float(10 * np.exp(log)),) for log in logs), **more)


def test_sound_timings_are_hardly_ever_doubted() -> None:
    """A false alarm costs a gate its verdict: at most one in a hundred, at the spread of a machine in use (8 %)."""
    rng, draws, doubted = np.random.default_rng(0), 2000, 0
    for _ in range(draws):
        machine = np.cumsum(0.1 * rng.standard_normal(24))  # both sides share it
        noise = 0.08 * rng.standard_normal((2, 24))
        doubted += bool(doubts.find_doubts([timed("a", machine), timed("b", machine + noise[0])]))
    assert doubted / draws <= 0.01


def test_drift_is_found_where_its_noise_allows() -> None:
    rng, draws, detected = np.random.default_rng(1), 500, 0
    flat = np.zeros(30)
    for _ in range(draws):
        drifting = np.linspace(0, 0.15, 30) + 0.02 * rng.standard_normal(30)
        detected += any("drifted" in d for d in doubts.find_doubts([timed("a", flat), timed("b", drifting)]))
    assert detected / draws >= 0.95


def test_a_single_run_is_compared_with_its_own_past() -> None:
    rising = np.linspace(0, 0.3, 30)
    assert "the latency of a drifted by +23% from start to end" in doubts.find_doubts([timed("a", rising)])[0]
    assert doubts.find_doubts([timed("a", rising), timed("b", rising)]) == ()


def test_threads_and_outputs_that_are_not_finite() -> None:
    flat = np.zeros(12)
    found = doubts.find_doubts([timed("a", flat, threads=2), timed("b", flat, threads=1, finite=False)])
    assert found == ("b: outputs are not finite", "b uses 1 threads, but a uses 2")


def test_a_doubt_of_the_engine_itself_is_passed_on() -> None:
    steady = np.zeros(30)
    own = timed("tensorrt-fp16", steady, effective={"doubt": "its kernels were chosen in power mode 15W, this is MAXN"})
    assert doubts.find_doubts([timed("a", steady), own]) == (
        "tensorrt-fp16: its kernels were chosen in power mode 15W, this is MAXN",
    )
