"""ONNX files are taken as they are, if they take one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import GraphError, SourceError, VitdeployError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import load


def _save(
    path: Path, shape: list[int | str], *, kind: int = TensorProto.FLOAT, inputs: int = 1, external: bool = False
) -> Path:
    names = [f"x{i}" for i in range(inputs)]
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32 if kind == TensorProto.FLOAT else np.uint8), "w")
    if external:
        weight = numpy_helper.from_array(np.ones((1, 1, 1, 600), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Mul", [names[0], "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("y", kind, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=external, location="w.data" if external else None)
    return path


def test_size_and_name_are_the_graphs(tmp_path: Path) -> None:
    model = load(ModelSpec(spec=str(_save(tmp_path / "m.onnx", ["n", 3, 32, 48]))))
    assert (model.weights, model.input_name, model.parameters) == ("own", "x0", 1)
    assert model.preprocess.size == (32, 48)
    assert (model.module, model.onnx) == (None, tmp_path / "m.onnx")
    grey = load(ModelSpec(spec=str(_save(tmp_path / "g.onnx", [1, 1, 8, 8]))))
    assert grey.preprocess.channels == 1


def test_dynamic_sizes_need_one(tmp_path: Path) -> None:
    spec = ModelSpec(spec=str(_save(tmp_path / "m.onnx", ["n", 3, "h", "w"])))
    with pytest.raises(SourceError, match="--image-size"):
        load(spec)
    assert load(spec, size=(16, 8)).preprocess.size == (16, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": [1, 32, 32, 3]}, "NHWC"),
        ({"shape": [1, 4, 32, 32]}, "1 or 3 channels"),
        ({"shape": [1, 3]}, "not a batch of images"),
        ({"shape": [1, 3, 8, 8], "inputs": 2}, "beside the image 'x0' it needs x1"),
        ({"shape": [1, 3, 8, 8], "kind": TensorProto.UINT8}, "not float32"),
    ],
)
def test_inputs_that_are_no_image(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load(ModelSpec(spec=str(_save(tmp_path / "m.onnx", **options))))  # type: ignore[arg-type]


def test_the_digest_covers_external_data(tmp_path: Path) -> None:
    spec = ModelSpec(spec=str(_save(tmp_path / "m.onnx", [1, 3, 8, 600], external=True)))
    before = load(spec)
    data = tmp_path / "w.data"
    assert data.is_file()
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(bytes(content))
    assert load(spec).digest != before.digest


def test_what_does_not_serve(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [1, 3, 8, 8])
    with pytest.raises(SourceError, match="its own weights"):
        load(ModelSpec(spec=str(path), weights="random"))
    with pytest.raises(SourceError, match="takes images of 8x8"):
        load(ModelSpec(spec=str(path)), size=(16, 16))
    path.write_bytes(path.read_bytes()[:40])
    for missing in (path, tmp_path / "no.onnx"):
        with pytest.raises(VitdeployError):
            load(ModelSpec(spec=str(missing)))
