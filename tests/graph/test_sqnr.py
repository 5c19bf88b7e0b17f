"""Signal, noise, and numbers that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.graph.sqnr import MOST_DB, Noise, decibels

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 1.0, 0.0),
        (1.0, 0.001, 30.0),
        (1.0, 0.0, MOST_DB),
        (0.0, 0.0, MOST_DB),
        (0.0, 1.0, -MOST_DB),
        (1.0, np.inf, -MOST_DB),
        (np.nan, 1.0, -MOST_DB),
        (1.0, 1e-300, MOST_DB),
    ],
)
def test_decibels(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected)


def test_batches_add_up_to_the_whole() -> None:
    a = RNG.standard_normal((4, 5, 6)).astype(np.float32)
    b = a + 0.1 * RNG.standard_normal(a.shape).astype(np.float32)
    whole, parts = Noise(), Noise()
    whole.add(a, b)
    for one in range(4):
        parts.add(a[one], b[one])
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert whole.sqnr_db == pytest.approx(20, abs=1.5)
    assert parts.cosine == pytest.approx(float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)), rel=1e-6)
    assert parts.max_abs == pytest.approx(np.abs(a - b).max())
    assert parts.reference_max == pytest.approx(np.abs(a).max())


def test_half_precision_is_summed_in_full() -> None:
    a = np.full(1000, 300.0, np.float16)  # its squares are beyond float16
    noise = Noise()
    noise.add(a, a + np.float16(3))
    assert noise.sqnr_db == pytest.approx(40, abs=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_far_and_counted(value: float) -> None:
    noise = Noise()
    noise.add(np.ones(4), np.array([1, value, value, 1]))
    noise.add(np.ones(4), np.ones(4))
    assert (noise.sqnr_db, noise.nonfinite, noise.cosine) == (-MOST_DB, 2, 0.0)
