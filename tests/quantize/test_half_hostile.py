"""Models that plain FP16 breaks keep their answers, in true half precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.graphs import images, parsed, run, types
from tests.quantize.hostile import (
    in_true_half,
    ready,
    with_hot_attention,
    with_large_stream,
    with_norms_written_out,
)  # fmt: skip
from vitdeploy import sources
from vitdeploy.artifact.quantization import HalfPrecision
from vitdeploy.data.dataset import batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Linear, Structure
from vitdeploy.passes import order
from vitdeploy.passes import run as run_passes
from vitdeploy.pipeline.calibration import GraphInputs, open_images
from vitdeploy.quantize import Calibration, half
from vitdeploy.recipe import ModelSpec, Recipe
from vitdeploy.session import Array

ERROR = 0.01
"""Of the largest logit; plain FP16 of the plain model is at 0.0014."""


@pytest.fixture(scope="module")
def digits() -> SimpleNamespace:
    model = sources.load(ModelSpec(spec="demo:digits"), size=None)

    def read(split: Any, count: int) -> Array:
        data = open_dataset("demo:digits", model.preprocess, labels=None, need_labels=False, split=split)
        return np.concatenate([to_input(x, model.preprocess, "normalized") for x, _ in batches(data, 1, limit=count)])

    return SimpleNamespace(vit=model.module, calibration=read("calibration", 16), images=read("evaluation", 8))


@dataclass(frozen=True)
class Halved:
    """A graph in float16, and the record of what stays in float32."""

    graph: Graph
    record: HalfPrecision


def quantized(graph: Graph, structure: Structure, digits: SimpleNamespace, keep: tuple[str, ...] = ()) -> Halved:
    data = Calibration(lambda: (x[None] for x in digits.calibration), 16, 16, "digits", "digest")
    return Halved(graph, half.quantize(graph, structure, keep, data))


def error(vit: Any, graph: Graph, x: Array) -> float:
    """The largest error over the largest logit; infinite where an answer is NaN."""
    with torch.inference_mode():
        reference = vit(torch.from_numpy(x)).numpy()
    y = in_true_half(graph, x)
    return float(np.abs(y - reference).max() / np.abs(reference).max()) if np.isfinite(y).all() else np.inf


def naive(graph: Graph) -> Graph:
    graph = Graph(graph.model.clone())
    half.convert(graph)
    return graph


def kept(graph: Graph, *op_types: str) -> list[str]:
    """The nodes that compute in float32, without Casts."""
    nodes = [n for n in graph.nodes if n.outputs[0].dtype == ir.DataType.FLOAT and n.op_type != "Cast"]
    return [n.name or "" for n in nodes if not op_types or n.op_type in op_types]


def test_the_plain_model_is_float16_throughout(digits: SimpleNamespace) -> None:
    graph, structure = ready(digits.vit, digits.images[:1])
    result = quantized(graph, structure, digits)
    assert kept(result.graph) == []
    assert str(result.record) == "float16 throughout"
    assert str(result.record.checked_on) == "16 calibration images (digits)"
    assert result.record.largest_tensor == "blocks.1.attn/Attention/scores"
    assert 0 < (result.record.largest or 0) < (result.record.limit or 0)
    assert error(digits.vit, result.graph, digits.images[:2]) < ERROR


def test_a_stream_beyond_float16_stays_float32(digits: SimpleNamespace) -> None:
    """Up to 5e5. The nodes that write to it stay too: less than half of the linears."""
    vit = with_large_stream(digits.vit, 1e5)
    graph, structure = ready(vit, digits.images[:1])
    assert error(vit, naive(graph), digits.images[:1]) == np.inf
    result = quantized(graph, structure, digits)
    assert error(vit, result.graph, digits.images) < ERROR
    linears = {linear.name: linear.role for linear in structure.linears}
    roles = {linears[name] for name in result.record.float32 if name in linears}
    assert roles == {"patch", "proj", "fc2"}
    assert result.record.float32_nodes["LayerNormalization"] == 9
    assert kept(result.graph, "Attention", "Gelu") == []


def test_massive_activations_cost_no_linear_and_no_attention(digits: SimpleNamespace) -> None:
    vit = with_large_stream(digits.vit, 6e4, slice(1, 3))
    graph, structure = ready(vit, digits.images[:1])
    assert error(vit, naive(graph), digits.images[:1]) == np.inf
    result = quantized(graph, structure, digits)
    assert error(vit, result.graph, digits.images) < ERROR
    assert kept(result.graph, "MatMul", "Conv", "Attention", "Gelu") == []
    assert len(kept(result.graph, "LayerNormalization")) == 5  # of blocks 2 and 3, and the last


def test_hot_attention_stays_float32_alone_and_is_named(digits: SimpleNamespace) -> None:
    vit = with_hot_attention(digits.vit, 1e4, block=1)
    graph, structure = ready(vit, digits.images[:1])
    assert error(vit, naive(graph), digits.images[:1]) == np.inf
    result = quantized(graph, structure, digits)
    assert error(vit, result.graph, digits.images) < ERROR
    assert kept(result.graph, "Attention") == ["blocks.1.attn/Attention"]
    assert result.record.float32["blocks.1.attn"].startswith("blocks.1.attn/Attention/scores reaches 1")


def test_a_layer_norm_in_primitives_keeps_its_squares_in_float32(digits: SimpleNamespace) -> None:
    """A stream of 500 squares beyond float16: the norm would divide by infinity, without any NaN."""
    vit = with_large_stream(digits.vit, 100)
    graph, structure = with_norms_written_out(vit, digits.images[:1])
    assert "LayerNormalization" not in types(graph)
    assert error(vit, naive(graph), digits.images[:1]) > 10 * ERROR
    result = quantized(graph, structure, digits)
    assert error(vit, result.graph, digits.images[:4]) < ERROR
    assert kept(result.graph, "MatMul", "Conv", "Gelu", "Attention") == []
    assert len(kept(result.graph, "Pow")) > 0


def test_backends_take_the_mixed_graph(digits: SimpleNamespace) -> None:
    ov = pytest.importorskip("openvino")
    vit = with_large_stream(digits.vit, 6e4, slice(1, 3))
    graph, structure = ready(vit, digits.images[:1])
    result = quantized(graph, structure, digits)
    run_passes(order.lowering(Dialect(20, "primitives")), result.graph)
    x = digits.images[:1]
    with torch.inference_mode():
        reference = vit(torch.from_numpy(x)).numpy()
    (y,) = run(result.graph, x).values()
    assert np.abs(y - reference).max() < ERROR * np.abs(reference).max()
    core = ov.Core()
    model = core.read_model(ir.to_proto(result.graph.model).SerializeToString())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled(x)[0] - reference).max() < ERROR * np.abs(reference).max()


def test_what_gains_nothing_is_refused() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[1,3,32,32] x) => (float y) { y = MatMul(x, w) }'
    graph = parsed(text, w=np.full((32, 4), 1e5, np.float32))
    node = next(iter(graph.nodes))
    linear = Linear(name="head", nodes=(node.name or "",), role="head", block=None, weight=(32, 4))
    data = Calibration(lambda: iter([images()]), 1, 1, "test", "digest")
    with pytest.raises(QuantizeError, match=r"fp16 gains nothing: 1 of 1 linears, 100% .*head: .*reaches"):
        half.quantize(graph, Structure(attention=(), linears=(linear,), norms=()), (), data)


def test_without_any_image_the_record_says_so(digits: SimpleNamespace) -> None:
    graph, structure = ready(digits.vit, digits.images[:1])
    assert half.quantize(graph, structure, (), None).checked_on is None


def test_keep_holds_for_fp16(digits: SimpleNamespace) -> None:
    graph, structure = ready(digits.vit, digits.images[:1])
    result = quantized(graph, structure, digits, ("head",))
    assert kept(result.graph) == ["head/MatMul"]
    assert result.record.float32 == {"head": "keep: head"}


def test_without_data_images_are_made_up_and_the_record_says_so(digits: SimpleNamespace) -> None:
    recipe = Recipe.model_validate({"model": {"spec": "timm:x"}, "target": {"kind": "tensorrt", "batch": 3}})
    preprocess = sources.load(ModelSpec(spec="demo:digits"), size=None).preprocess
    data, _ = open_images(
        recipe.data, None, GraphInputs("input", preprocess, recipe.target.input), recipe.target.batch.min
    )
    stream: Iterator[Array] = iter(data.batches())
    assert [x.shape for x in stream] == [(3, 1, 32, 32)] * 5
    assert str(data.data) == "15 synthetic images only: give --calibration to check on real data"
