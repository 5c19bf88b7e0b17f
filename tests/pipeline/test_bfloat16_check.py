"""`--precision bf16` for the TensorRTs: the graph is checked, though ONNX Runtime has no convolution in bfloat16."""

from __future__ import annotations

from pathlib import Path

import onnx

from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent


def test_a_bundle_in_bfloat16_is_compared_with_the_reference(tmp_path: Path) -> None:
    recipe = recipes.compose("demo:digits", target="tensorrt", precision="bf16")
    recipe = recipes.with_target_options(recipe, {"rehearsal": False})
    artifact = export(recipe, tmp_path / "out", Silent(), cache=GraphCache()).artifact
    parity = artifact.manifest.graph_parity
    assert parity is not None
    assert 0.999 < parity.cosine < 1.0, "its weights are rounded"
    graph = onnx.load(artifact.path / "graph.onnx").graph
    assert {t.data_type for t in graph.initializer if t.data_type != onnx.TensorProto.INT64} == {
        onnx.TensorProto.BFLOAT16
    }, "what is stored stays bfloat16"
