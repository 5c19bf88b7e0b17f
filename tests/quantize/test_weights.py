"""Weight-only INT8 and INT4: the formula of the codes, the gain of compensation, and the written nodes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from tests.graphs import parsed, run
from vitdeploy.quantize import weights
from vitdeploy.quantize.observe import InputStatistics
from vitdeploy.quantize.weights import WeightStorage
from vitdeploy.session import Array

RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((128, 6)) * [1, 10, 0.01, 0, 3, 1]).astype(np.float32)
WEIGHT[:, 5] += 2  # one sign only, nearly: a zero point has to help


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 32), (4, 32), (4, 128), (4, None)])
def test_every_weight_is_within_half_a_step_of_its_code(bits: Literal[4, 8], group: int | None) -> None:
    found = weights.round_to_nearest(WEIGHT, WeightStorage(bits, group))
    groups = 128 // (group or 128)
    assert found.scale.shape == (groups, 6)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    step = np.repeat(found.scale, 128 // groups, axis=0)
    # A zero point is rounded as well: at the very ends of the range that costs another half.
    assert np.all(np.abs(found.dequantized - WEIGHT) <= step * (0.5 if bits == 8 else 1) * 1.001)
    assert not found.dequantized[:, 3].any()
    low, high = (0, 15) if bits == 4 else (-127, 127)
    codes = found.codes.astype(int)
    assert (codes.min(), codes.max()) == (low, high)
    assert (found.zero is None) == (bits == 8)


@pytest.mark.parametrize(
    ("group", "rows", "expected"), [(64, 192, 64), (64, 96, 32), (64, 80, 16), (64, 100, 100), (None, 100, 100)]
)
def test_a_group_is_halved_until_it_divides_the_rows(group: int | None, rows: int, expected: int) -> None:
    assert WeightStorage(4, group).group_rows(rows) == expected


def correlated(rows: int = 512, channels: int = 128) -> Array:
    """Inputs in which few directions carry most, as activations of a trained model are."""
    mixed = RNG.standard_normal((rows, 8)) @ RNG.standard_normal((8, channels))
    return (mixed + 0.1 * RNG.standard_normal((rows, channels))).astype(np.float32)


@pytest.mark.parametrize("group", [None, 32, 64])
def test_compensation_is_worth_6_db_on_inputs_that_it_has_not_seen(group: int | None) -> None:
    both = correlated(1024)
    seen, unseen = both[:512], both[512:]
    form = WeightStorage(4, group)

    def noise(found: weights.QuantizedWeight) -> float:
        return float(np.sum((unseen @ (found.dequantized - WEIGHT)) ** 2))

    gain_db = 10 * np.log10(
        noise(weights.round_to_nearest(WEIGHT, form)) / noise(weights.compensate_rounding(WEIGHT, form, seen))
    )
    assert gain_db > 6


def test_dead_inputs_do_not_break_compensation() -> None:
    inputs = correlated()
    inputs[:, :40] = 0
    for given in (inputs, np.zeros_like(inputs)):
        found = weights.compensate_rounding(WEIGHT, WeightStorage(4, 64), given)
        assert np.isfinite(found.dequantized).all()
        assert np.abs(found.dequantized - WEIGHT).max() < 3 * found.scale.max()


def test_weights_that_are_shared_are_stored_for_each_and_images_compensate() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]> g (float[4,128] x) => (float y) {
        a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b)
    }"""
    nearest, better = parsed(text, w=WEIGHT), parsed(text, w=WEIGHT)
    inputs = correlated(516)
    statistics = {"x": InputStatistics(inputs.min(0), inputs.max(0), inputs[:512])}
    weights.write_weights(nearest, ["MatMul.0", "MatMul.1"], WeightStorage(4, 64))
    weights.write_weights(better, ["MatMul.0", "MatMul.1"], WeightStorage(4, 64), statistics)
    exact = 2 * inputs[512:] @ WEIGHT
    errors = [np.abs(run(graph, inputs[512:])["y"] - exact).mean() for graph in (nearest, better)]
    assert errors[1] < 0.6 * errors[0]
