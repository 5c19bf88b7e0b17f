"""The models of the kit: whole graphs with their answers, small, and usable where there is neither torch nor onnx."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitdeploy.commands.board.models import ASSET, MODELS, PRECISIONS, unpack
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.precision import kind_of

LARGEST_DIFFERENCE = {"fp32": 1e-5, "fp16": 4e-3, "int8": 0.05, "fp8": 0.15}
LIGHT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "timm", "transformers", "onnx", "onnx_ir", "onnxruntime", "ml_dtypes"}:
            raise ModuleNotFoundError(f"no {name} on a board", name=name)

sys.meta_path.insert(0, Missing())
from pathlib import Path
from vitdeploy.commands.board import attempt, compilers, record
order = attempt.Order(target="tensorrt-rtx", model="vit", precision="int8", folder=Path(sys.argv[1]))
attempt._work(order.model_dump_json().encode())
"""


def test_the_archive_is_small() -> None:
    assert ASSET.stat().st_size < 320_000


@pytest.mark.parametrize(("model", "precision"), [*product(MODELS, PRECISIONS)])
def test_each_graph_is_valid_and_computes_its_answer(model: str, precision: str, tmp_path: Path) -> None:
    unpacked = unpack(model, precision, tmp_path)
    bundle = unpacked.bundle
    onnx.checker.check_model(onnx.load(bundle.graph), full_check=True)
    assert len(bundle.structure.attention) == 2
    assert bundle.numbers == kind_of(precision).numbers
    kinds = {node.op_type for node in onnx.load(bundle.graph).graph.node}
    assert ("QuantizeLinear" in kinds) is (precision in ("int8", "fp8"))
    if precision == "bf16":  # ONNX Runtime has no convolution in it
        return
    with OnnxSession(bundle.graph, lean=True) as session:
        outputs = session.run({bundle.input_name: unpacked.image})
    ((name, expected),) = unpacked.expected.items()
    assert np.ptp(expected) > 0.5, "an answer that shows errors"
    difference = np.abs(outputs[name] - expected).max() / np.abs(expected).max()
    assert difference < LARGEST_DIFFERENCE[precision]


def test_a_board_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    """TensorRT-RTX builds one for real in a Python that has them not."""
    pytest.importorskip("tensorrt_rtx")
    subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], check=True)
    assert '"status":"built"' in (tmp_path / "attempt.json").read_text()
    assert "LayerType: " in (tmp_path / "build.log").read_text()
