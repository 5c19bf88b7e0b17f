"""The tiny ViT as bundles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.graphs import images, parsed
from vitdeploy import passes, targets
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.precision import kind_of, quantize
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration
from vitdeploy.recipe import Batch, PrecisionSpec, TargetSpec
from vitdeploy.targets import Bundle, Target


@pytest.fixture(scope="session")
def bundle(exported: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """The tiny ViT, ready for a target in a precision, in a folder of its own."""

    def make(found: Target, precision: Any, kind: str = "dynamo") -> Bundle:
        folder = tmp_path_factory.mktemp("bundle")
        graph = parsed(exported(kind))
        passes.run([*order.raising(), *order.folding(packed_qkv=found.dialect().packed_qkv)], graph)
        structure = recognize(graph, {})
        batches = [images(1, seed) for seed in range(4)]
        calibration = Calibration(lambda: iter(batches), 4, 4, "test", "digest")
        graph = quantize(graph, structure, PrecisionSpec(kind=precision), found.dialect(), calibration, Silent()).graph
        passes.run(order.lowering(found.dialect()), graph)
        newer = {"int4-weights": 21, "bf16": 22}  # the first opset with the types, where the operators are ONNX's own
        own = (found.name == "onnxruntime" and precision != "bf16") or (precision, found.name) == ("bf16", "openvino")
        assert graph.opset == (found.dialect().opset if own else newer.get(precision, found.dialect().opset))
        graph.save(folder / "graph.onnx")
        batch = Batch.model_validate("1:2:4" if kind.endswith("batch") else 1)
        return Bundle(
            graph=folder / "graph.onnx",
            structure=structure.locate_attention(node.name or "" for node in graph.nodes),
            numbers=kind_of(precision).numbers,
            batch=batch,
            input_name="input",
            input_shape=(batch.opt, 3, 32, 32),
        )

    return make


@pytest.fixture
def given(bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """The tiny ViT as a bundle for TensorRT."""
    found = targets.find(TargetSpec(kind="tensorrt"))
    return lambda precision="fp16", kind="dynamo": bundle(found, precision, kind)
