"""Operators that a target lacks are refused by name before anything is compiled."""

from __future__ import annotations

import pytest

from tests.graphs import parsed
from vitdeploy import targets
from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.lacking import refuse_lacking
from vitdeploy.recipe import TargetSpec

TEXT = """<ir_version: 10, opset_import: ["" : 20]> vit (float[1,3,2,2] x, bool c) => (float y) {
    d = Det(x)
    y = If(c) <
        then_branch = a () => (float t) { t = Det(x) },
        else_branch = b () => (float t) { u = Identity(d) t = Neg(u) }
    >
}"""


def dialect(target: str) -> Dialect:
    return targets.find(TargetSpec(kind=target)).dialect()


def test_names_the_node_and_what_writes_it() -> None:
    with pytest.raises(CompileError) as caught:
        refuse_lacking(parsed(TEXT), dialect("tensorrt"), "tensorrt")
    assert caught.value.message == (
        "tensorrt has no Det (torch.linalg.det), which node 'Det.0' needs, and 1 more of the kind"
    )
    assert caught.value.fix is not None
    assert "--target openvino or onnxruntime" in caught.value.fix
    refuse_lacking(parsed(TEXT), dialect("onnxruntime"), "onnxruntime")


def test_names_the_other_operators_too() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> vit (float[4] x, bool[4] c) => (float y, float z) {
        y = Compress(x, c) z = Unique(y)
    }"""
    with pytest.raises(
        CompileError, match=r"no Compress \(selecting by a mask\), which node 'Compress.0' .*, nor Unique"
    ):
        refuse_lacking(parsed(text), dialect("tensorrt-rtx"), "tensorrt-rtx")


def test_the_parser_of_tensorrt_rtx_agrees() -> None:
    """All that it does not know, but operators of quantized files and those that no model here can have."""
    trt = pytest.importorskip("tensorrt_rtx")
    onnx = pytest.importorskip("onnx")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    lacks = set(dialect("tensorrt-rtx").lacks)
    assert {name for name in lacks if parser.supports_operator(name)} == set()
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.since_version <= 20]
    names = {s.name for s in schemas if not s.deprecated}
    quantized = {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
    foreign = {
        "ImageDecoder", "MelWeightMatrix", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement",
        "OptionalHasElement", "RegexFullMatch", "SoftmaxCrossEntropyLoss", "StringConcat", "StringNormalizer",
        "StringSplit", "TfIdfVectorizer",
    }  # fmt: skip
    assert {name for name in names if not parser.supports_operator(name)} - lacks == quantized | foreign
