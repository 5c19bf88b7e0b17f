"""Dynamic INT8: the formula of the codes, and the operator that uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.graphs import apply, images, raised, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes.lower_multihead import LowerMultihead
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.unpack_qkv import UnpackQkv
from vitdeploy.quantize import dynamic
from vitdeploy.quantize.placement import select_linears
from vitdeploy.quantize.qdq import quantize_symmetric
from vitdeploy.session import Array

WEIGHT = (np.random.default_rng(0).standard_normal((32, 5)) * [1, 10, 0.01, 0, 3]).astype(np.float32)


@pytest.mark.parametrize("largest", [127, 64])
def test_codes_are_symmetric_with_one_scale_for_each_output_channel(largest: int) -> None:
    codes, scale = quantize_symmetric(WEIGHT, largest)
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (5,))
    alive = np.array([0, 1, 2, 4])
    assert scale[alive] == pytest.approx(np.abs(WEIGHT).max(0)[alive] / largest)
    assert np.abs(codes).max(0).tolist() == [largest, largest, largest, 0, largest]
    assert np.all(np.abs(codes * scale - WEIGHT) <= scale / 2 * 1.001)
    assert np.isfinite(scale).all()
    assert np.array_equal(quantize_symmetric(-WEIGHT, largest)[0], -codes)


def test_every_selected_linear_becomes_one_operator(vit: Any, exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    apply(LowerMultihead(), graph)
    reference = run(graph, images())["output_0"]
    before = graph.weight_bytes()
    placed, kept = select_linears(structure, ("head",))
    dynamic.write_kernels(graph, [name for linear in placed for name in linear.nodes], 127)
    assert types(graph).count("DynamicQuantizeMatMul") == 8
    assert types(graph).count("MatMul") == 1
    assert (len(placed), set(kept)) == (8, {"patch_embed.proj", "head"})
    y = run(graph, images())["output_0"]
    assert 0 < relative(y, reference) < 0.1
    apply(RemoveDead(), graph)
    assert graph.weight_bytes() < 0.5 * before  # the patch embedding, the head, and all vectors stay in float


def relative(y: Array, reference: Array) -> float:
    return float(np.abs(y - reference).max() / np.abs(reference).max())


def test_an_add_that_is_no_bias_stays(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    adds = types(graph).count("Add")
    placed, _ = select_linears(structure, ())
    dynamic.write_kernels(graph, [name for linear in placed for name in linear.nodes], 127)
    assert types(graph).count("Add") == adds - len(placed)  # residuals and the position embedding are still there


def test_what_several_linears_read_is_quantized_once(exported: Callable[[str], bytes]) -> None:
    """The numbers are those of separate quantizations."""
    graph, structure, _ = raised(exported("dynamo"))
    packed = Graph(graph.model.clone())
    names = [name for linear in select_linears(structure, ())[0] for name in linear.nodes]
    dynamic.write_kernels(packed, names, 127)
    apply(UnpackQkv(), graph)
    apply(RemoveDead(), graph)
    placed, _ = select_linears(recognize(graph, {}), ())
    dynamic.write_kernels(graph, [name for linear in placed for name in linear.nodes], 127)
    assert types(graph).count("DynamicQuantizeLinear") == 2
    assert types(graph).count("MatMulIntegerToFloat") == 6
    assert types(graph).count("DynamicQuantizeMatMul") == 7
    y, reference = (run(g, images())["output_0"] for g in (graph, packed))
    assert relative(y, reference) < 1e-5
