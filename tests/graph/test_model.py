"""Loading refuses damaged files and data outside the folder; saving keeps everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graphs import expected, images, parsed, run, types
from vitdeploy.errors import GraphError
from vitdeploy.graph import model as models
from vitdeploy.graph.model import Graph, array, load, operand
from vitdeploy.onnx_export import check, disagreement

SECRET = b"secret" * 1000


def external(folder: Path, location: str = "weights.bin", *, length: bool = True, inside_node: bool = False) -> Path:
    """A model whose weight lies in `location`."""
    tensor = onnx.numpy_helper.from_array(np.ones(100, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=400 if length else None)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    nodes = [onnx.helper.make_node("Add", ["x", "w"], ["y"], name="add")]
    if inside_node:
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["w"], name="constant", value=tensor))
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [100]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:], [] if inside_node else [tensor])
    path = folder / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph, ir_version=9).SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.full(100, 3, np.float32).tobytes())
    graph = load(external(tmp_path))
    assert array(graph.model.graph.initializers["w"])[0] == 3


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("inside_node", [True, False])
def test_external_data_that_is_damaged_is_refused(tmp_path: Path, length: bool, inside_node: bool) -> None:
    path = external(tmp_path, length=length, inside_node=inside_node)
    with pytest.raises(GraphError, match=r"data file weights\.bin is missing"):
        load(path)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 399)
    with pytest.raises(GraphError, match=r"data file weights\.bin is truncated"):
        load(path)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 400)
    load(path)


@pytest.mark.parametrize("inside_node", [True, False])
@pytest.mark.parametrize("way", ["relative", "absolute", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, way: str, inside_node: bool) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(SECRET)
    (folder / "link").symlink_to(secret)
    location = {"relative": "../secret", "absolute": str(secret), "link": "link"}[way]
    with pytest.raises(GraphError, match="'w' lies outside the folder of the model"):
        load(external(folder, location, inside_node=inside_node))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="there is no file"):
        load(tmp_path / "gone.onnx")


def test_a_truncated_file_is_refused(tmp_path: Path, exported: Callable[[str], bytes]) -> None:
    path = tmp_path / "model.onnx"
    whole = exported("legacy-17")
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(GraphError, match=r"model\.onnx is not a (readable ONNX file|complete ONNX model)"):
            load(path)
    path.write_bytes(whole)
    load(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(100), b"<html></html>", b"\x93NUMPY" + bytes(60)])
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match="ONNX"):
        load(path)


@pytest.mark.parametrize("inside_node", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_what_is_saved_elsewhere_does_not_need_the_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside_node: bool, large: bool
) -> None:
    """ViT-Base has external data in float32 and none in INT8; float32 tensors must not point to the old file."""
    if large:
        monkeypatch.setattr(models, "_EXTERNAL_ABOVE_BYTES", 100)
    (tmp_path / "weights.bin").write_bytes(np.full(100, 3, np.float32).tobytes())
    graph = load(external(tmp_path, inside_node=inside_node))
    saved = tmp_path / "elsewhere" / "saved.onnx"
    saved.parent.mkdir()
    graph.save(saved)
    (tmp_path / "weights.bin").unlink()
    again = load(saved)
    np.testing.assert_array_equal(array(next(n for n in again.nodes if n.op_type == "Add").inputs[1]), 3)


def test_large_weights_go_beside_the_graph_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit: Any, exported: Callable[[str], bytes]
) -> None:
    monkeypatch.setattr(models, "_EXTERNAL_ABOVE_BYTES", 1000)
    graph = parsed(exported("dynamo"))
    graph.save(tmp_path / "model.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    again = load(tmp_path / "model.onnx")
    assert again.weight_bytes() == graph.weight_bytes() > 1000
    assert disagreement(check(tmp_path / "model.onnx", [(images(), expected(vit, images()))], "input")) is None


def test_replace_keeps_the_name_of_what_it_takes_over() -> None:
    graph = parsed('<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float y) { a = Relu(x) y = Neg(a) }')
    relu, neg = graph.nodes
    tape = ir.tape.Tape()
    new = tape.op("Sigmoid", [graph.model.graph.inputs[0]], name="new")
    graph.replace([relu, neg], tape, neg.outputs[0], new)
    assert (types(graph), graph.model.graph.outputs[0].name) == (["Sigmoid"], "y")
    assert run(graph, np.zeros(2, np.float32))["y"].tolist() == [0.5, 0.5]


def test_new_nodes_and_constants_never_take_a_name_that_is_in_use() -> None:
    graph = parsed(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Add(x, w) }', w=np.float32(2)
    )
    for _ in range(2):  # the second time the first one's names are in use
        tape = ir.tape.Tape()
        one = tape.initializer(ir.tensor(np.float32(1), name="w"))
        doubled = tape.op("Mul", [graph.model.graph.inputs[0], one], name="Add.0")
        graph.insert_before(next(iter(graph.nodes)), tape)
        doubled.shape, doubled.type = graph.model.graph.inputs[0].shape, graph.model.graph.inputs[0].type
        assert graph.initializer(np.zeros(1), "w").name not in ("w", one.name)
    names = [node.name for node in graph.nodes]
    assert sorted(names) == ["Add.0", "Add.0_1", "Add.0_2"]
    assert len(graph.model.graph.initializers) == 5
    assert run(graph, np.float32([1, 2]))["y"].tolist() == [3, 4]


def test_a_replaced_node_leaves_its_name_to_the_new_one() -> None:
    graph = parsed('<ir_version: 9, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    (relu,), tape = graph.nodes, ir.tape.Tape()
    graph.replace([relu], tape, relu.outputs[0], tape.op("Abs", [relu.inputs[0]], name=relu.name))
    assert [(node.name, node.op_type) for node in graph.nodes] == [("Relu.0", "Abs")]


def test_a_missing_input_of_an_operator_is_named() -> None:
    graph = Graph(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}), ir_version=10))
    node = ir.node("MatMul", [ir.Value(name="x"), None], name="blocks.0/MatMul")
    with pytest.raises(GraphError, match=r"blocks\.0/MatMul \(MatMul\) has no input 1"):
        operand(node, 1)
    with pytest.raises(GraphError, match="x is not a constant"):
        array(node.inputs[0])
    assert graph.opset == 20


def test_a_new_value_never_takes_the_name_of_another() -> None:
    """A rewrite twice over: the first gives the old output's name away, the second asks for it again."""
    graph = parsed('<ir_version: 10, opset_import: ["" : 20]> vit (float[2] x) => (float y) { h = Relu(x) y = Neg(h) }')
    (relu, _), h = graph.nodes, next(graph.nodes).outputs[0]
    relu.name, h.name = "layer/Relu", "layer/Relu:0"
    tape = ir.tape.Tape()
    graph.replace([relu], tape, h, tape.op("Abs", [tape.op("Relu", list(relu.inputs), name="layer/Relu")], name="abs"))
    inner = next(graph.nodes)
    tape = ir.tape.Tape()
    graph.replace(
        [inner], tape, inner.outputs[0], tape.op("Neg", [tape.op("Relu", list(inner.inputs), name="layer/Relu")])
    )
    names = [value.name for node in graph.nodes for value in node.outputs]
    assert len(set(names)) == len(names), names
