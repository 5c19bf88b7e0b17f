"""What samples say against themselves, and how seldom they say it of sound ones."""

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
        mood = np.cumsum(0.1 * rng.standard_normal(24))  # both sides share it
        noise = 0.08 * rng.standard_normal((2, 24))
        doubted += bool(doubts.of_runs([timed("a", mood), timed("b", mood + noise[0])]))
    assert doubted / draws <= 0.01


def test_drift_is_seen_at_the_power_that_its_noise_allows() -> None:
    rng, draws, seen = np.random.default_rng(1), 500, 0
    flat = np.zeros(30)
    for _ in range(draws):
        drifting = np.linspace(0, 0.15, 30) + 0.02 * rng.standard_normal(30)
        seen += any("drifted" in d for d in doubts.of_runs([timed("a", flat), timed("b", drifting)]))
    assert seen / draws >= 0.95


def test_a_lone_session_is_held_against_its_own_past() -> None:
    rising = np.linspace(0, 0.3, 30)
    assert "the latency of a drifted" in doubts.of_runs([timed("a", rising)])[0]
    assert doubts.of_runs([timed("a", rising), timed("b", rising)]) == ()


def test_threads_and_numbers() -> None:
    flat = np.zeros(12)
    found = doubts.of_runs([timed("a", flat, threads=2), timed("b", flat, threads=1, finite=False)])
    assert found == ("b: outputs are not finite", "b uses 1 threads, a 2")


def test_what_an_engine_says_against_itself_is_a_doubt() -> None:
    steady = np.zeros(30)
    own = timed("tensorrt-fp16", steady, effective={"doubt": "its kernels were chosen in power mode 15W, this is MAXN"})
    assert doubts.of_runs([timed("a", steady), own]) == (
        "tensorrt-fp16: its kernels were chosen in power mode 15W, this is MAXN",
    )
