"""`--dump-graphs`: the graph after each phase, in order, each a valid model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.errors import UsageError
from vitdeploy.progress import Silent

PHASES = ["exported", "raised", "folded", "fp32-quantized", "fp32-lowered", "int8-quantized", "int8-lowered"]


def test_every_phase_is_written_in_order(tmp_path: Path) -> None:
    recipe = recipes.compose("demo:digits", target="onnxruntime", precision="int8")
    export(recipe, tmp_path / "digits", Silent(), dumps=tmp_path / "dumps")
    written = sorted((tmp_path / "dumps").glob("*.onnx"))
    assert [path.stem for path in written] == [f"{n:02}-{phase}" for n, phase in enumerate(PHASES, 1)]
    operators = {path.stem[3:]: {node.op_type for node in onnx.load(path).graph.node} for path in written}
    assert "Gemm" in operators["exported"]
    assert "Gemm" not in operators["raised"]
    assert "Squeeze" in operators["raised"]
    assert "Squeeze" not in operators["folded"]
    assert "MultiHeadAttention" not in operators["fp32-quantized"]
    assert "QuantizeLinear" in operators["int8-quantized"]
    assert "QuantizeLinear" not in operators["fp32-lowered"]
    assert "MultiHeadAttention" in operators["int8-lowered"]
    deployed = onnx.load(tmp_path / "digits" / "graph.onnx")
    assert [n.op_type for n in deployed.graph.node] == [n.op_type for n in onnx.load(written[-1]).graph.node]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    recipe = recipes.compose("demo:digits", target="onnxruntime")
    with pytest.raises(UsageError, match=r"--dump-graphs .*file/dumps: cannot write there"):
        export(recipe, tmp_path / "digits", Silent(), dumps=tmp_path / "file" / "dumps")
    assert not (tmp_path / "digits").exists()
