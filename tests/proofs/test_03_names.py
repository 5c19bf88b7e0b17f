"""Names and order of outputs come from the manifest by index, whatever an engine calls them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitdeploy import targets
from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import FLOAT32, Numbers
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.structure import Structure
from vitdeploy.precision import kind_of
from vitdeploy.recipe import Batch, TargetSpec
from vitdeploy.session import Array
from vitdeploy.targets import Bundle, Compiled

TRANSPOSED = """
    <ir_version: 9, opset_import: ["" : 20]>
    heads (float[1, 3, 8, 8] image)
        => (float[1, 8, 8, 3] z_maps, float[1, 8, 8, 3] a_twin, float[1, 3, 8, 8] image_again, float[2] fixed,
            float[1, 3, 8, 8] b_positive, float[1, 3, 64] logits)
        <float[3, 3, 1, 1] weight = {0.5, -1, 2, 1, 0.25, -0.5, 3, 1, -2}, float[2] number = {3, 4},
         int64[3] shape = {1, 3, 64}>
    {
        moved = Transpose <perm = [0, 2, 3, 1]> (image)
        z_maps = Sigmoid (moved)
        a_twin = Identity (z_maps)
        image_again = Identity (image)
        fixed = Identity (number)
        mixed = Conv <kernel_shape = [1, 1]> (image, weight)
        channels_last = Transpose <perm = [0, 2, 3, 1]> (mixed)
        back = Transpose <perm = [0, 3, 1, 2]> (channels_last)
        b_positive = Relu (back)
        flat = Reshape (mixed, shape)
        logits = Relu (flat)
    }
"""
QUANTIZED = """
    <ir_version: 9, opset_import: ["" : 20]>
    heads (float[1, 16, 32] image) => (float[1, 8, 16] z_scores, float[1, 16, 8] a_same)
        <float scale = {0.02}, uint8 zero = {128}, int8 none = {0}>
    {
        codes = QuantizeLinear (image, scale, zero)
        x = DequantizeLinear (codes, scale, zero)
        weight_codes = QuantizeLinear (weight, scale, none)
        w = DequantizeLinear (weight_codes, scale, none)
        product = MatMul (x, w)
        turned = Transpose <perm = [0, 2, 1]> (product)
        z_scores = Sigmoid (turned)
        a_same = Relu (product)
    }
"""


def make_bundle(folder: Path, text: str, numbers: Numbers = FLOAT32) -> Bundle:
    model = onnx.parser.parse_model(text)
    if "weight" not in {tensor.name for tensor in model.graph.initializer}:
        values = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, "weight"))
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    onnx.save(model, folder / "graph.onnx")
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    return Bundle(
        graph=folder / "graph.onnx",
        structure=Structure(attention=(), linears=(), norms=()),
        numbers=numbers,
        batch=Batch(),
        input_name="image",
        input_shape=shape,
        output_names=tuple(output.name for output in model.graph.output),
    )


def compile_for(kind: str, bundle: Bundle) -> Compiled:
    return targets.find(TargetSpec(kind=kind, threads=1)).compile(bundle, bundle.graph.parent)


def run(kind: str, compiled: Compiled, numbers: Numbers, image: Array) -> dict[str, Array]:
    with targets.find(TargetSpec(kind=kind, threads=1)).open(compiled, numbers, 1) as session:
        return session.run({"image": image})


def make_image(bundle: Bundle) -> Array:
    return np.random.default_rng(0).standard_normal(bundle.input_shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("text", "precision"),
    [(TRANSPOSED, "fp32"), (QUANTIZED, "int8")],
    ids=["fp32", "int8"],
)
def test_outputs_have_the_names_of_the_graph_in_its_order(kind: str, text: str, precision: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, text, kind_of(precision).numbers)
    image = make_image(bundle)
    with OnnxSession(bundle.graph, lean=True) as session:
        expected = session.run({"image": image})
    outputs = run(kind, compile_for(kind, bundle), bundle.numbers, image)
    assert list(outputs) == list(expected) == list(bundle.output_names)
    for name, value in outputs.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_the_manifests_names_win_over_the_engines(kind: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, TRANSPOSED)
    compiled = compile_for(kind, bundle)
    own = run(kind, compiled, FLOAT32, make_image(bundle))
    names = tuple(f"given {number}" for number in range(len(own)))
    renamed = run(kind, replace(compiled, output_names=names), FLOAT32, make_image(bundle))
    assert tuple(renamed) == names
    for before, after in zip(own.values(), renamed.values(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_another_number_of_outputs_than_the_manifests_is_refused(kind: str, tmp_path: Path) -> None:
    compiled = compile_for(kind, make_bundle(tmp_path, TRANSPOSED))
    found = targets.find(TargetSpec(kind=kind, threads=1))
    with pytest.raises(CompileError, match=r"has 6 outputs .*, the manifest 1 \(logits\)"):
        found.open(replace(compiled, output_names=("logits",)), FLOAT32, 1)


def test_openvino_takes_inputs_by_their_place(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, TRANSPOSED)
    compiled = replace(compile_for("openvino", bundle), input_names=("pixels",))
    with targets.find(TargetSpec(kind="openvino", threads=1)).open(compiled, FLOAT32, 1) as session:
        outputs = session.run({"pixels": make_image(bundle)})
        session.run_all([{"pixels": make_image(bundle)}] * 3)
    np.testing.assert_array_equal(outputs["image_again"], make_image(bundle))


def test_an_output_that_openvino_merges_with_another_tensor_is_watched_by_both_names(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, TRANSPOSED)
    compiled = compile_for("openvino", bundle)
    found, work = targets.find(TargetSpec(kind="openvino", threads=1)), tmp_path / "work"
    work.mkdir()
    watched = found.watch(bundle, compiled, ["mixed", "z_maps", "moved"], work)
    with watched.session as session:
        outputs = session.run({"image": make_image(bundle)})
    assert watched.tensors <= set(outputs)
    assert set(bundle.output_names) <= set(outputs)
