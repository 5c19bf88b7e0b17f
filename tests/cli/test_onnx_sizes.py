"""ONNX files whose batch, height and width vary, at sizes that are not square."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cli.conftest import listing, run
from tests.onnx_files import CLASSES, input_shape, noise, operators, run_plain, sized_dynamo, sized_legacy, sized_vit
from vitdeploy import artifact as artifacts
from vitdeploy.runtime.artifact_session import open_session

pytestmark = pytest.mark.usefixtures("here")

SITES = 2
EXPORTS: dict[str, Callable[[], bytes]] = {
    "legacy-11": lambda: sized_legacy(sized_vit(fused=False), 11),  # Softmax of a matrix
    "legacy-14": lambda: sized_legacy(sized_vit(), 14),
    "dynamo-18": lambda: sized_dynamo(sized_vit(), 18),
    "dynamo-23": lambda: sized_dynamo(sized_vit(), 23),  # Attention as one operator
    "fixed-17": lambda: sized_legacy(sized_vit(interpolated=False), 17, size=(32, 32)),
}


@cache
def exported(kind: str) -> bytes:
    return EXPORTS[kind]()


def export(kind: str, *words: object) -> Any:
    Path("m.onnx").write_bytes(exported(kind))
    found = run("export", "m.onnx", *words, "-o", "out", "--json")
    assert found.code == 0, found.err
    return json.loads(found.out)


def refused(model: bytes, *words: object) -> str:
    Path("m.onnx").write_bytes(model)
    before = listing(Path.cwd())
    found = run("export", "m.onnx", "--target", "onnxruntime", *words)
    assert (found.code, found.out) == (1, ""), found.err
    assert listing(Path.cwd()) == before
    return found.error


def assert_same_numbers(kind: str, image: Any) -> None:
    """What was compiled gives the numbers of the file, on an image that the export has not seen."""
    loaded = artifacts.load(Path("out"))
    with open_session(loaded, 1) as session:
        (given,) = session.run({"image": image}).values()
    (expected,) = run_plain(exported(kind), image)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("kind", "size"),
    [("legacy-11", (24, 40)), ("legacy-14", (48, 32)), ("dynamo-18", (24, 40)), ("dynamo-18", (48, 32)),
     ("dynamo-23", (40, 24))],
)  # fmt: skip
def test_height_and_width_are_fixed_and_attention_is_fused(kind: str, size: tuple[int, int], target: str) -> None:
    height, width = size
    export(kind, "--image-size", f"{height}x{width}", "--target", target)
    assert input_shape(Path("out/graph.onnx")) == [1, 3, height, width]
    assert not {"Shape", "Resize", "Expand"} & operators(Path("out/graph.onnx"))
    audit = json.loads(Path("out/audit.json").read_text())
    assert (audit["attention"]["sites"], audit["attention"]["fused"]) == (SITES, SITES)
    assert artifacts.load(Path("out")).manifest.preprocess.size == size
    assert_same_numbers(kind, noise(1, 3, height, width))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["legacy-11", "dynamo-18"])
def test_the_batch_may_go_on_varying(kind: str, target: str) -> None:
    export(kind, "--image-size", "24x40", "--batch", "1:2:4", "--target", target)
    batch, *rest = input_shape(Path("out/graph.onnx"))
    assert (isinstance(batch, str), rest) == (True, [3, 24, 40])
    audit = json.loads(Path("out/audit.json").read_text())
    assert audit["attention"]["fused"] == SITES
    for images in (1, 3):
        assert_same_numbers(kind, noise(images, 3, 24, 40))
    assert artifacts.load(Path("out")).manifest.outputs[0].shape == (batch, CLASSES)


@pytest.mark.parametrize("size", ["24x40", "48x32"])
def test_an_engine_for_a_gpu_that_is_not_here(size: str) -> None:
    """It is compiled and audited, and its graph in float16 has the numbers of the file in ONNX Runtime."""
    pytest.importorskip("tensorrt_rtx")
    height, width = map(int, size.split("x"))
    assert export("legacy-14", "--image-size", size, "--target", "tensorrt-rtx")["stage"] == "artifact"
    audit = json.loads(Path("out/audit.json").read_text())
    assert (audit["attention"]["sites"], audit["attention"]["fused"]) == (SITES, SITES)
    assert audit["linears"]["fp16"] == sum(audit["linears"].values()) > 0
    assert input_shape(Path("out/graph.onnx")) == [1, 3, height, width]
    image = noise(1, 3, height, width)
    (expected,), (given,) = run_plain(exported("legacy-14"), image), run_plain(Path("out/graph.onnx"), image)
    assert np.abs(given - expected).max() < 5e-3 * np.abs(expected).max()


def test_bench_and_eval_rebuild_the_file_at_its_size(images: Callable[..., Path]) -> None:
    export("dynamo-18", "--image-size", "24x40", "--target", "onnxruntime")
    data = images(3, classes=tuple(f"c{i}" for i in range(CLASSES)))
    found = run("eval", "out", "--data", data, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["agreement"] == 1.0
    found = run("bench", "out", "--seconds", "1", "--json")
    reference = next(r for r in json.loads(found.out)["runs"] if r["role"] == "reference")
    assert reference["name"] == "onnxruntime-fp32"


def test_a_map_as_large_as_the_image_has_its_size() -> None:
    """The declared sides of the output are names of the input's, and become its numbers."""
    kernel = numpy_helper.from_array(noise(1, 3, 3, 3), "kernel")
    sides = ["n", "c", "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["map"], pads=[1, 1, 1, 1])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, sides)],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    Path("m.onnx").write_bytes(model.SerializeToString())
    found = run("export", "m.onnx", "--target", "onnxruntime", "--image-size", "17x23", "--batch", "1:2:3", "-o", "out")
    assert found.code == 0, found.err
    assert artifacts.load(Path("out")).manifest.outputs[0].shape == ("n", 1, 17, 23)


def test_without_a_size_there_is_one_line() -> None:
    line = refused(exported("dynamo-18"))
    assert "m.onnx: its image size is dynamic. Give --image-size HxW." in line


def test_a_size_that_is_not_a_multiple_of_the_patch() -> None:
    line = refused(exported("legacy-14"), "--image-size", "36x32")
    assert "image size 36x32 is not a multiple of the patch size 8x8. Use --image-size 32x32 or 40x32." in line
    line = refused(exported("legacy-14"), "--image-size", "4x4")
    assert line.endswith("Use --image-size 8x8.")


def test_a_size_that_the_position_embedding_is_not_for() -> None:
    line = refused(exported("fixed-17"), "--image-size", "32x48")
    assert "m.onnx does not take images of 32x48: Add node" in line
    assert "17 by 25. Give the --image-size that it was exported with" in line
    assert "/onnxruntime_src" not in line
    export("fixed-17", "--image-size", "32x32", "--target", "onnxruntime")
    assert_same_numbers("fixed-17", noise(1, 3, 32, 32))


def test_one_side_may_vary_alone() -> None:
    axes = {"image": {3: "width"}}
    model = sized_legacy(sized_vit(), 17, axes)
    assert "takes images of 32x40, not 48x40" in refused(model, "--image-size", "48x40", "--batch", "2")
    found = run("export", "m.onnx", "--target", "onnxruntime", "--image-size", "32x40", "--batch", "2", "-o", "out")
    assert found.code == 0, found.err
    assert input_shape(Path("out/graph.onnx")) == [2, 3, 32, 40]
    assert onnx.load("out/graph.onnx").graph.output[0].type.tensor_type.shape.dim[0].dim_value == 2
