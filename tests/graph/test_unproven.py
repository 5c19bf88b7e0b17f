"""Outputs that ignore the image, or that are below the comparison's absolute floor, are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitdeploy.graph.parity import ABSOLUTE_FLOOR, compare, explain_difference
from vitdeploy.graph.unproven import find_blind, find_unproven

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 50)).astype(np.float32)


def parity(a: Any, b: Any) -> Any:
    return compare({"y": a, "z": X}, {"y": b, "z": X}, batch=2)


@pytest.mark.parametrize("scale", [1e-38, 1e-40, 1e-44])
def test_denormal_numbers_that_an_engine_flushes_are_equal_and_named(scale: float) -> None:
    a = (X * np.float32(scale)).astype(np.float32)
    flushed = np.where(np.abs(a) < np.finfo(np.float32).tiny, np.float32(0), a)
    assert explain_difference(parity(a, flushed)) is None
    assert explain_difference(parity(a, -a)) is None, "it agrees with anything"
    for other in (flushed, -a):
        (reason,) = find_unproven(parity(a, other)).values()
        assert "output 'y' reaches only" in reason
        assert "1e-07 count as rounding: parity proves nothing for it" in reason


@pytest.mark.parametrize("scale", [1e-9, 1e-20, 1e-37])
def test_small_numbers_that_agree_by_their_own_scale_are_proven(scale: float) -> None:
    a = X * np.float32(scale)
    assert find_unproven(parity(a, a * np.float32(1 + 1e-6))) == {}
    assert list(find_unproven(parity(a, a * np.float32(1.1)))) == ["y"]


def test_zeros_on_both_sides_and_values_above_the_floor_are_proven() -> None:
    assert find_unproven(parity(np.zeros_like(X), np.zeros_like(X))) == {}
    above = X * np.float32(ABSOLUTE_FLOOR)  # the largest is three times the floor
    assert find_unproven(parity(above, above * np.float32(1.01))) == {}
    assert find_unproven(parity(X > 0, X > 0)) == {}


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30])
def test_the_cosine_has_no_scale(scale: float) -> None:
    a = (X * np.float32(scale)).astype(np.float32)
    output = next(o for o in parity(a, a).outputs if o.name == "y")
    assert output.cosine == pytest.approx(1.0)
    turned = next(o for o in parity(a, -a).outputs if o.name == "y")
    assert turned.cosine == pytest.approx(-1.0)
    double = np.array([[1e-200, 2e-200], [1e200, 0]])
    for row in double:
        assert parity(np.tile(row, (2, 1)), np.tile(row, (2, 1))).outputs[0].cosine == pytest.approx(1.0)


BLIND: dict[str, tuple[Callable[[int], Any], bool]] = {
    "anchors": (lambda _: np.arange(8.0).reshape(1, 8), True),
    "zeros": (lambda _: np.zeros((1, 8), np.float32), True),
    "another rounding": (lambda n: np.full((1, 8), 1 + 1e-7 * n), True),
    "another batch": (lambda n: np.tile(np.arange(8.0), (1 + n, 1)), True),
    "a class": (lambda _: np.array([3]), True),
    "logits": (lambda n: np.arange(8.0).reshape(1, 8) + n, False),
    "a small part of it": (lambda n: np.array([[1.0, 1.0 + 1e-4 * n]]), False),
    "another size": (lambda n: np.ones((1, 8 + n)), False),
    "a class that changes": (lambda n: np.array([n]), False),
    "nothing": (lambda _: np.zeros((1, 0)), False),
}


@pytest.mark.parametrize("name", BLIND)
def test_an_output_that_ignores_the_image_is_named(name: str) -> None:
    make, is_blind = BLIND[name]
    reasons = find_blind([{"y": make(n), "z": X + n} for n in range(3)])
    assert list(reasons) == (["y"] if is_blind else [])
    if is_blind:
        assert reasons["y"] == (
            "output 'y' is the same for all 3 batches of example images: parity proves nothing for it"
        )
    assert find_blind([{"y": make(0)}]) == {}, "one batch shows nothing"
