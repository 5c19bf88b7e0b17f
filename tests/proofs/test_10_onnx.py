"""Point 10: ONNX files are bounded by their nodes, in linear time, and nothing runs before they are screened."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, load
from vitdeploy.graph.screening import screen
from vitdeploy.passes.fold_constants import FoldConstants
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import load as load_model

_FLOAT, _INT64, _BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def _save(path: Path, nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None) -> Path:
    constants = {"kernel": np.ones((8, 3, 4, 4), np.float32), "axes": np.array([2, 3]), "rounds": np.int64(1 << 62)}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["v0"], strides=[4, 4]), *nodes],
        "g",
        [helper.make_tensor_value_info("image", _FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", _FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions or []), path)
    return path


def _chain(path: Path, length: int) -> Path:
    names = [f"v{index}" for index in range(length + 1)]
    nodes = [helper.make_node(("Tanh", "Relu")[i % 2], [names[i]], [names[i + 1]]) for i in range(length)]
    return _save(path, [*nodes, helper.make_node("ReduceMean", [names[-1], "axes"], ["scores"], keepdims=0)])


def _refusal(path: Path) -> str:
    started = time.process_time()
    with pytest.raises(GraphError) as error:
        load_model(ModelSpec(spec=str(path)))
    assert time.process_time() - started < 5
    return str(error.value)


def test_too_many_nodes_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of 100,000 nodes took more than 280 s."""
    path = _chain(tmp_path / "m.onnx", 60_000)
    assert "has 60,002 nodes, more than 50,000. If you trust the file, raise the limit: VITDEPLOY_MAX_NODES=200000" in (
        _refusal(path)
    )
    monkeypatch.setenv("VITDEPLOY_MAX_NODES", "60002")
    assert sum(1 for _ in load(path).nodes) == 60_002


def _seconds_to_fold(path: Path) -> float:
    graph = load(path)
    started = time.process_time()
    FoldConstants().apply(graph)
    return time.process_time() - started


def test_folding_takes_linear_time(tmp_path: Path) -> None:
    """Four times as many nodes took sixteen times as long, 17 s for 6,000."""
    short, long = (_seconds_to_fold(_chain(tmp_path / f"{n}.onnx", n)) for n in (1000, 4000))
    assert long < 8 * short


@pytest.mark.parametrize("middle", [2, 3])
def test_two_halves_are_still_split(tmp_path: Path, middle: int) -> None:
    """The rule of the optimizer whose search was shortened still fires where it did, and only there."""
    nodes = [
        helper.make_node("Constant", [], [f"c{number}"], value_ints=[number]) for number in sorted({0, middle, 4, 3})
    ]
    for name, begin, end in (("right", middle, 4), ("left", 0, middle)):
        nodes.append(helper.make_node("Slice", ["v0", f"c{begin}", f"c{end}", "c3"], [name]))
        nodes.append(helper.make_node("Relu", [name], [f"{name} half"]))
    nodes.append(helper.make_node("Concat", ["left half", "right half"], ["joined"], axis=3))
    nodes.append(helper.make_node("ReduceMean", ["joined", "axes"], ["scores"], keepdims=0))
    graph = load(_save(tmp_path / "m.onnx", nodes))
    graph.infer_shapes()
    FoldConstants().apply(graph)
    kinds = [node.op_type for node in graph.nodes]
    assert (kinds.count("Split"), kinds.count("Slice")) == ((1, 0) if middle == 2 else (0, 2))


def _loop_body() -> onnx.GraphProto:
    inputs = [("i", _INT64, []), ("go", _BOOL, []), ("x", _FLOAT, None)]
    outputs = [("on", _BOOL, []), ("y", _FLOAT, None)]
    return helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("where", ["graph", "branch", "function"])
def test_a_loop_is_refused_before_it_runs(tmp_path: Path, where: str) -> None:
    """A file of 300 bytes with 2^62 rounds ignored Ctrl-C."""
    loop = helper.make_node("Loop", ["rounds", "", "v0"], ["scores"], "loop", body=_loop_body())
    nodes, functions = [loop], []
    if where == "branch":
        value = helper.make_tensor_value_info("scores", _FLOAT, None)
        branch = helper.make_graph([loop], "branch", [], [value])
        true = helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array(True)))
        nodes = [true, helper.make_node("If", ["true"], ["scores"], then_branch=branch, else_branch=branch)]
    if where == "function":
        nodes = [helper.make_node("f", ["rounds", "v0"], ["scores"], domain="own")]
        opsets = [helper.make_opsetid("", 18)]
        functions = [helper.make_function("own", "f", ["rounds", "v0"], ["scores"], [loop], opsets)]
    assert "is Loop, and the operators inside control flow cannot be checked" in _refusal(
        _save(tmp_path / "m.onnx", nodes, functions)
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["doubling", "circle", "deep"])
def test_functions_that_explode_are_refused(tmp_path: Path, kind: str) -> None:
    """Forty functions that each call the next one twice are 2^40 nodes."""
    count, calls = {"doubling": (40, 2), "circle": (2, 1), "deep": (200, 1)}[kind]
    functions = []
    for index in range(count):
        last = index == count - 1
        target = f"f{0 if kind == 'circle' else index + 1}" if not last or kind == "circle" else ""
        names = ["x", *(f"t{i}" for i in range(calls - 1)), "y"]
        body = [
            helper.make_node(target or "Neg", [names[i]], [names[i + 1]], domain="own" if target else "")
            for i in range(calls)
        ]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{index}", ["x"], ["y"], body, opsets))
    nodes = [helper.make_node("f0", ["v0"], ["scores"], domain="own")]
    message = _refusal(_save(tmp_path / "m.onnx", nodes, functions))
    assert "more than 50,000 nodes" in message or "call each other too deeply" in message


@pytest.mark.timeout(180)
def test_a_value_that_nothing_reads_is_not_computed(tmp_path: Path) -> None:
    """A tensor of 4 TB beside the model: engines leave it out, and so does folding."""
    sizes = helper.make_node("Constant", [], ["sizes"], value_ints=[1 << 20, 1 << 20])
    zeros = helper.make_node("ConstantOfShape", ["sizes"], ["zeros"])
    dead = helper.make_node("Exp", ["zeros"], ["dead"])
    mean = helper.make_node("ReduceMean", ["v0", "axes"], ["scores"], keepdims=0)
    graph = load(_save(tmp_path / "m.onnx", [sizes, zeros, dead, mean]))
    screen(graph.model, tmp_path / "m.onnx")
    FoldConstants().apply(graph)
    assert [node.op_type for node in graph.nodes] == ["Conv", "ReduceMean"]


def test_a_plain_function_passes(tmp_path: Path) -> None:
    body = [helper.make_node("Neg", ["x"], ["t"]), helper.make_node("Neg", ["t"], ["y"])]
    function = helper.make_function("own", "f", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    nodes = [helper.make_node("f", ["v0"], ["scores"], domain="own")]
    graph: Graph = load(_save(tmp_path / "m.onnx", nodes, [function]))
    screen(graph.model, tmp_path / "m.onnx")
    assert isinstance(graph.model, ir.Model)
