"""Several graphs over one weight file: equal bytes once, and every graph computes what it computed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.graph.model import Graph, load
from vitdeploy.graph.shared_weights import SHARED_ABOVE_BYTES, SharedWeights

SIZE = 32
WEIGHT = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE) / SIZE


def linear(path: Path, weight: np.ndarray, bias: float, *, half: bool = False) -> Graph:
    """A product with a large weight, and a small bias."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    numbers = np.float16 if half else np.float32
    shape = [1, SIZE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [
            numpy_helper.from_array(weight.astype(numbers), "w"),
            numpy_helper.from_array(np.full(SIZE, bias, numbers), "b"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return load(path)


def run(path: Path, half: bool = False) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": np.ones((1, SIZE), np.float16 if half else np.float32)})[0]
    return result


def test_equal_bytes_are_stored_once(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    kinds = {
        "a": (WEIGHT, 1.0, False),
        "b": (WEIGHT, 2.0, False),
        "c": (WEIGHT, 1.0, True),
        "d": (WEIGHT + 1, 1.0, False),
    }
    graphs = {name: linear(tmp_path / "alone" / name, *facts[:2], half=facts[2]) for name, facts in kinds.items()}
    with SharedWeights(tmp_path / "graph.onnx.data") as weights:
        for name, graph in graphs.items():
            weights.add(graph, tmp_path / f"{name}.onnx")
    full = SIZE * SIZE * 4
    assert (tmp_path / "graph.onnx.data").stat().st_size == full + full // 2 + full, "a and b share one weight"
    for name, (_, _, half) in kinds.items():
        assert np.array_equal(run(tmp_path / f"{name}.onnx", half), run(tmp_path / "alone" / name, half))
        locations = [
            (entry.value, tensor.name)
            for tensor in onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        ]
        assert locations == [("graph.onnx.data", "w")], "small tensors stay in the graph, for shape inference"


def test_the_graph_in_memory_and_its_own_file_stay_as_they_are(tmp_path: Path) -> None:
    graph = linear(tmp_path / "one.onnx", WEIGHT, 1.0)
    before = {name: value.const_value for name, value in graph.model.graph.initializers.items()}
    with SharedWeights(tmp_path / "shared.data") as weights:
        weights.add(graph, tmp_path / "two.onnx")
    after = {name: value.const_value for name, value in graph.model.graph.initializers.items()}
    assert all(before[name] is tensor for name, tensor in after.items())


def test_a_graph_whose_weights_lie_in_another_file_is_copied(tmp_path: Path) -> None:
    graph = linear(tmp_path / "one.onnx", WEIGHT, 1.0)
    ir.save(graph.model, tmp_path / "external.onnx", external_data="external.data", size_threshold_bytes=1)
    with SharedWeights(tmp_path / "shared.data") as weights:
        weights.add(load(tmp_path / "external.onnx"), tmp_path / "two.onnx")
    (tmp_path / "external.data").unlink()
    assert np.array_equal(run(tmp_path / "two.onnx"), run(tmp_path / "one.onnx"))
    assert SIZE * 4 < SHARED_ABOVE_BYTES, "the bias is a small tensor, and came from the other file as well"


def test_the_same_graphs_give_the_same_bytes(tmp_path: Path) -> None:
    graphs = [linear(tmp_path / "a", WEIGHT, 1.0), linear(tmp_path / "b", WEIGHT * 2, 1.0)]
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        with SharedWeights(tmp_path / folder / "shared.data") as weights:
            for number, graph in enumerate(graphs):
                weights.add(graph, tmp_path / folder / f"{number}.onnx")
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in ("first", "second"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
