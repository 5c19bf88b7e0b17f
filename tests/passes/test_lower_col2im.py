"""nn.Fold becomes a transposed convolution with an identity as its weight, with the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from torch import nn

from tests.graphs import apply, expected, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.lower_col2im import LowerCol2im
from vitdeploy.quantize.half import convert

FOLDS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "apart": ({"output_size": (4, 6), "kernel_size": 2, "stride": 2}, (12, 6)),
    "overlapping": ({"output_size": (7, 7), "kernel_size": 3, "stride": 2, "padding": 1}, (27, 16)),
    "cropped": ({"output_size": (8, 8), "kernel_size": 3, "stride": 2, "padding": 1}, (27, 16)),
    "uneven": (
        {"output_size": (8, 9), "kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
        (18, 24),
    ),
    "short": ({"output_size": (7, 9), "kernel_size": 2, "stride": 3}, (12, 6)),
}
"""The arguments of nn.Fold, and the channels and patches that it takes. The patches of the last two end early."""


def fold(arguments: Mapping[str, Any], shape: tuple[int, int]) -> Graph:
    """A Col2Im as the dynamo exporter writes it: PyTorch pads both ends alike."""
    size, block, stride, pad, dilation = (
        [value] * 2 if isinstance(value := arguments.get(key, default), int) else list(value)
        for key, default in (("output_size", 0), ("kernel_size", 0), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    text = f"""<ir_version: 10, opset_import: ["" : 20]> vit (float[N, {shape[0]}, {shape[1]}] x) => (float y) {{
        y = Col2Im<strides = {stride}, pads = {pad + pad}, dilations = {dilation}>(x, size, block)
    }}"""
    return parsed(text, size=np.array(size), block=np.array(block))


@pytest.mark.parametrize("name", FOLDS)
def test_the_numbers_are_pytorchs(name: str) -> None:
    arguments, shape = FOLDS[name]
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    graph = fold(arguments, shape)
    result = apply(LowerCol2im(), graph)
    assert (result.fired, result.refused) == (1, {})
    assert types(graph) == ["Reshape", "ConvTranspose", *(["Pad"] if name in ("uneven", "short") else [])]
    assert np.abs(run(graph, x)["y"] - expected(nn.Fold(**arguments), x)["output_0"]).max() < 1e-5


def test_the_weight_has_the_type_of_the_patches() -> None:
    x, graph = np.ones((1, 12, 6), np.float32), fold(*FOLDS["apart"])
    graph.infer_shapes()
    convert(graph)
    assert apply(LowerCol2im(), graph).fired == 1
    assert np.array_equal(run(graph, x)["y"], np.ones((1, 3, 4, 6), np.float32))


def test_refuses_sizes_that_vary() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> vit (float[1, 12, L] x, int64[2] size) => (float y) {
        y = Col2Im(x, size, block)
    }"""
    graph = parsed(text, block=np.array([2, 2]))
    assert apply(LowerCol2im(), graph).refused == {"Col2Im.0": "the size of its image varies"}
    text = text.replace("int64[2] size", "float[1] unused").replace("Col2Im(x, size", "Col2Im(x, length")
    graph = parsed(text.replace("L]", "3]"), length=np.array([6]), block=np.array([4]))
    assert apply(LowerCol2im(), graph).refused == {"Col2Im.0": "its image has other than two axes"}
    assert types(graph) == ["Col2Im"]
