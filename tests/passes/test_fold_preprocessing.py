"""A graph that takes pixels gives the same numbers as before for the preprocessed image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import GraphError
from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.session import Array

RNG = np.random.default_rng(0)
PREPROCESS = Preprocess(size=(8, 8))
PIXELS = RNG.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
FORMS: list[InputForm] = ["pixels", "uint8"]


def vit(body: str) -> str:
    return f'<ir_version: 10, opset_import: ["" : 20]> vit (float[2,3,8,8] x) => (float y) {{ {body} }}'


def folding(form: InputForm, *, half: bool = False) -> FoldPreprocessing:
    dtype: Literal["float32", "uint8"] = "uint8" if form == "uint8" else "float32"
    return FoldPreprocessing(mean=PREPROCESS.mean, std=PREPROCESS.std, dtype=dtype, half=half)


def check(body: str, form: InputForm, operators: list[str], *, half: bool = False, **constants: Array) -> None:
    weights = {"w": RNG.standard_normal((5, 3, 4, 4)), "b": RNG.standard_normal(5), **constants}
    graph = parsed(vit(body), **{name: np.asarray(a, np.float32) for name, a in weights.items()})
    reference = run(graph, to_input(PIXELS, PREPROCESS, "normalized"))["y"]
    assert apply(folding(form, half=half), graph).fired == 1
    assert types(graph) == (["Cast"] if form == "uint8" else []) + operators
    result = run(graph, to_input(PIXELS, PREPROCESS, form))["y"]
    assert np.abs(result - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inputs", ["x, w", "x, w, b"])
def test_folds_into_the_patch_embedding(form: InputForm, inputs: str) -> None:
    check(f"y = Conv<strides = [4, 4]>({inputs})", form, ["Conv"])


@pytest.mark.parametrize("padding", ["pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"'])
def test_padding_stays_the_mean(padding: str) -> None:
    check(f"y = Conv<strides = [2, 2], {padding}>(x, w, b)", "uint8", ["Sub", "Conv"])


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("c = Conv<strides = [4, 4]>(x, w) r = ReduceMean(x) y = Add(c, r)", ["Conv", "ReduceMean", "Add"]),
        ("y = Conv<group = 3>(x, d)", ["Conv"]),
        ("y = Relu(x)", ["Relu"]),
    ],
)
def test_computes_what_it_cannot_fold(body: str, operators: list[str]) -> None:
    check(body, "uint8", ["Mul", "Add", *operators], d=RNG.standard_normal((6, 1, 4, 4)))
    graph = parsed(vit("y = Relu(x)"))
    refused = apply(folding("pixels"), graph).refused
    assert refused == {"x": "it is not read by one convolution alone: its normalization is computed in the graph"}


def test_weights_for_float16_are_not_subnormal() -> None:
    check("y = Conv<strides = [4, 4]>(x, w, b)", "uint8", ["Mul", "Conv"], half=True)
    graph = parsed(vit("y = Conv<strides = [4, 4]>(x, w)"), w=np.full((5, 3, 4, 4), 2e-3, np.float32))
    apply(folding("uint8", half=True), graph)
    weight = next(v.const_value for n, v in graph.model.graph.initializers.items() if "weight" in n)
    assert weight is not None
    assert weight.numpy().min() > np.finfo(np.float16).smallest_normal


def test_the_input_says_its_type() -> None:
    graph = parsed(vit("y = Conv<strides = [4, 4]>(x, w)"), w=np.ones((5, 3, 4, 4), np.float32))
    apply(folding("uint8"), graph)
    assert graph.model.graph.inputs[0].dtype == ir.DataType.UINT8


def test_another_number_of_channels_is_refused() -> None:
    graph = parsed(vit("y = Relu(x)"))
    with pytest.raises(GraphError, match="not images of 1 channels"):
        FoldPreprocessing(mean=(0.5,), std=(0.5,)).apply(graph)
