"""The same inputs give the same `graph.onnx`, byte for byte, with nothing of this machine in it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EXPORTS
from tests.graphs import images, parsed
from vitdeploy import passes
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec, TargetSpec
from vitdeploy.targets import find

ROOT = Path(__file__).parent.parent
CASES = [("openvino", "fp32"), ("onnxruntime", "int8-dynamic"), ("tensorrt-rtx", "fp16")]

AGAIN = """
import hashlib, pathlib, sys
from tests import graphs
from tests.test_determinism import CASES, written
model = graphs.dynamo(graphs.tiny_vit(), graphs.images())
for target, precision in CASES:
    print(hashlib.sha256(written(model, target, precision, pathlib.Path(sys.argv[1]))).hexdigest())
"""


def written(model: bytes, target: str, precision: str, folder: Path) -> bytes:
    """`graph.onnx` as `export` writes it for a target."""
    graph = parsed(model)
    dialect = find(TargetSpec(kind=target)).dialect()
    passes.run([*order.raising(), *order.folding(packed_qkv=dialect.packed_qkv)], graph)
    kind = PrecisionSpec.model_validate({"kind": precision})
    graph = quantize(graph, recognize(graph, {}), kind, dialect, None, Silent()).graph
    passes.run(order.lowering(dialect), graph)
    graph.save(folder / "graph.onnx")
    return (folder / "graph.onnx").read_bytes()


def test_another_process_writes_the_same_bytes(exported: Callable[[str], bytes], tmp_path: Path) -> None:
    """Exporter included; with another hash seed, so that the order of sets and another folder would show."""
    digests = [hashlib.sha256(written(exported("dynamo"), *case, tmp_path)).hexdigest() for case in CASES]
    other = tmp_path / "elsewhere"
    other.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", AGAIN, other]
    done = subprocess.run(command, cwd=other, env=environment, check=True, capture_output=True)
    assert done.stdout.decode().split() == digests


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize(("target", "precision"), CASES)
def test_no_path_and_no_stack_trace_is_left(
    kind: str, target: str, precision: str, exported: Callable[[str], bytes], tmp_path: Path
) -> None:
    graph = written(exported(kind), target, precision, tmp_path)
    traces = [b".py", b"site-packages", b"stack_trace", b'File "', str(ROOT).encode(), str(tmp_path).encode()]
    traces += [str(Path.home()).encode() + b"/", sys.prefix.encode()]
    assert [trace for trace in traces if trace in graph] == []
    assert re.findall(rb"/(?:home|root|tmp|usr|work|Users)/", graph) == []


def test_exporters_do_leave_them(exported: Callable[[str], bytes]) -> None:
    """What the test above rests on."""
    assert b"site-packages" in exported("dynamo")
    assert b"stack_trace" in exported("dynamo")


def test_another_weight_gives_other_bytes(exported: Callable[[str], bytes], tmp_path: Path) -> None:
    """And the digests do see a difference."""
    from tests import graphs

    module = graphs.tiny_vit()
    module.head.bias += 1e-3  # type: ignore[union-attr, operator]
    changed = graphs.legacy(module, images())
    assert written(changed, *CASES[0], tmp_path) != written(exported("legacy-17"), *CASES[0], tmp_path)
