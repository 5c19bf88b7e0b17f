"""Scales, codes and Q/DQ pairs, from statistics of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.graphs import images, parsed, raised, run, types
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph, operand
from vitdeploy.quantize.observe import SAMPLED_ROWS, InputStatistics, collect_statistics
from vitdeploy.quantize.qdq import CodeType, PairOptions, fit_activation, fit_affine, quantize_symmetric, write_pairs
from vitdeploy.session import Array

RNG = np.random.default_rng(0)


def inputs_of(graph: Graph) -> dict[str, str]:
    return {n.name or "": operand(n, 0).name or "" for n in graph.nodes if n.op_type == "MatMul"}


@pytest.mark.parametrize(("kind", "steps"), [("uint8", 255), ("int8", 254)])
def test_codes_span_the_range_and_keep_zero(kind: CodeType, steps: int) -> None:
    values = np.linspace(-1.0, 3.0, 1001, dtype=np.float32)
    found = fit_affine(-1.0, 3.0, kind)
    width = 4.0 if kind == "uint8" else 6.0
    assert found.scale == pytest.approx(width / steps)
    assert found.fake_quantize(np.zeros(1, np.float32))[0] == 0
    assert np.abs(found.fake_quantize(values) - values).max() <= found.scale * 0.51
    assert fit_affine(0.0, 0.0, kind).scale == 1.0  # a linear that only ever saw zeros


@pytest.mark.parametrize(("low", "high", "zero"), [(1.0, 3.0, 0), (-3.0, -1.0, 255)])
def test_a_range_on_one_side_of_0_is_stretched_to_0(low: float, high: float, zero: int) -> None:
    """Padding and ReLU give zeros, which no other code may stand for."""
    affine = fit_affine(low, high, "uint8")
    assert (affine.scale, affine.zero) == (pytest.approx(3.0 / 255), zero)


def test_e4m3_keeps_three_bits_of_mantissa() -> None:
    values = np.exp(RNG.uniform(-2, 2, 1000)).astype(np.float32)
    found = fit_affine(0.0, float(values.max()), "e4m3")
    assert np.abs(found.fake_quantize(values) / values - 1).max() <= 2**-4 * 1.01
    assert found.fake_quantize(values).max() == pytest.approx(values.max())
    beyond = np.array([-3.0, 3.0], np.float32)
    np.testing.assert_allclose(fit_affine(-1.0, 1.0, "e4m3").fake_quantize(beyond), [-1.0, 1.0])  # clipped, not NaN


def test_clipping_pays_where_an_outlier_costs_the_rest() -> None:
    rows = RNG.standard_normal((512, 64)).astype(np.float32)
    rows[0, 0] = 30.0
    statistics = InputStatistics(rows.min(axis=0), rows.max(axis=0), rows)
    whole = fit_activation(statistics, PairOptions(), np.ones(64))
    clipped = fit_activation(statistics, PairOptions(ranges="mse"), np.ones(64))
    error = [float(((f.fake_quantize(rows) - rows) ** 2).sum()) for f in (whole, clipped)]
    assert error[1] <= error[0]
    important = np.zeros(64)
    important[0] = 1.0  # the weights read nothing but the outlier's channel
    assert fit_activation(statistics, PairOptions(ranges="mse"), important).scale == whole.scale > clipped.scale


def test_a_shared_input_is_clipped_for_all_of_its_readers() -> None:
    """The first linear reads only the quiet channel, the second one only that of the outlier."""
    rows = RNG.standard_normal((512, 64)).astype(np.float32)
    rows[0, 0] = 30.0
    observed = InputStatistics(rows.min(axis=0), rows.max(axis=0), rows)
    weight, other = np.zeros((64, 4), np.float32), np.zeros((64, 4), np.float32)
    weight[1], other[0] = 0.01, 1.0
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[512,64] x) => (float y) {'
    graph = parsed(f"{text} a = MatMul(x, w) b = MatMul(x, u) y = Add(a, b) }}", w=weight, u=other)
    write_pairs(graph, ["MatMul.0", "MatMul.1"], {"x": observed}, PairOptions(ranges="mse"))
    scale = graph.model.graph.initializers["x/scale"].const_value
    assert scale is not None
    assert float(scale.numpy()) == pytest.approx(fit_activation(observed, PairOptions(), np.ones(64)).scale)


def test_scales_for_float16_are_numbers_of_float16() -> None:
    weight = (RNG.standard_normal((16, 8)) * 10.0 ** np.arange(-6, 2)).astype(np.float32)
    codes, scale = quantize_symmetric(weight, 127, half_scales=True)
    assert (scale.astype(np.float16).astype(np.float32) == scale).all()
    assert codes.any(axis=0).all()  # the smallest channel is not lost, although float16 rounds its scale to 0


def test_statistics_cover_every_row_and_do_not_grow(exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported("dynamo"))
    name = inputs_of(graph)["blocks.0.mlp.fc1/MatMul"]

    def stream(count: int) -> Iterator[Array]:
        return (images(1, seed) for seed in range(count))

    few, many = (collect_statistics(graph, [name], stream(n), n)[name] for n in (4, 600))
    assert few.low.shape == few.high.shape == (32,)
    assert len(few.rows) == len(many.rows) == SAMPLED_ROWS
    assert (many.low <= few.low).all()
    assert (many.high >= few.high).all()
    assert (few.rows >= few.low).all()
    assert (few.rows <= few.high).all()
    halved = few.divide(np.full(32, 2.0))
    np.testing.assert_allclose(halved.magnitude, few.magnitude / 2)


def test_an_image_that_is_not_finite_names_the_linear(exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported("dynamo"))
    broken = images(1)
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(QuantizeError, match=r"of blocks\.0\.attn\.qkv/MatMul, is not finite in calibration batch 1"):
        collect_statistics(graph, inputs_of(graph).values(), [images(1), broken], 2)
    with pytest.raises(QuantizeError, match="no calibration image"):
        collect_statistics(graph, inputs_of(graph).values(), [], 1)


OPTIONS = [PairOptions(), PairOptions("int8"), PairOptions("e4m3"), PairOptions(correct_bias=True, ranges="mse")]


@pytest.mark.parametrize("form", OPTIONS)
def test_pairs_are_written_on_the_named_linears(form: PairOptions, exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported("dynamo"))
    x = images(1, 9)
    reference = run(graph, x)["output_0"]
    named = inputs_of(graph)
    observed = collect_statistics(graph, named.values(), [images(1, seed) for seed in range(8)], 8)
    write_pairs(graph, named, observed, form)
    assert types(graph).count("QuantizeLinear") == len(set(named.values()))
    assert types(graph).count("DequantizeLinear") == len(set(named.values())) + len(named)
    y = run(graph, x)["output_0"]
    assert 0 < np.abs(y - reference).max() < (0.3 if form.code_type == "e4m3" else 0.1) * np.abs(reference).max()


def test_bias_correction_takes_the_mean_error_out_of_the_output() -> None:
    rows = np.abs(RNG.standard_normal((64, 8))).astype(np.float32)  # rounding errors of the weights do not cancel
    weight, bias = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 4), (4,)))
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[64,8] x) => (float y) { p = MatMul(x, w) y = Add(p, b) }'
    observed = InputStatistics(rows.min(axis=0), rows.max(axis=0), rows)
    errors = {}
    for correct in (False, True):
        graph = parsed(text, w=weight, b=bias)
        options = PairOptions(largest_weight=7, correct_bias=correct)  # 4 bits: an error that shows
        write_pairs(graph, ["MatMul.0"], {"x": observed}, options)
        errors[correct] = np.abs((run(graph, rows)["y"] - (rows @ weight + bias)).mean(axis=0)).max()
    assert errors[False] > 0.02
    assert errors[True] < 1e-5
