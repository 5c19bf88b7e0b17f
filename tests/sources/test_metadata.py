"""What the metadata of a file says about its model is used; what it does not say is called an assumption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import RecipeError, SourceError
from vitdeploy.recipe import ModelSpec, compose
from vitdeploy.sources import LoadedModel, load
from vitdeploy.sources._metadata import read_metadata

NAMES = ("cat", "dog", "ant")


def _save(path: Path, *, channels: int = 3, sides: tuple[int | str, int | str] = (8, 8), **metadata: str) -> Path:
    """A model of three classes: the mean of the image times a constant."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", channels, *sides])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["scores"]),
    ]
    weight = np.arange(3 * channels, dtype=np.float32).reshape(channels, 3)
    constants = [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(weight, "weight")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [scores], constants), opset_imports=[helper.make_opsetid("", 18)]
    )
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def _load(path: Path, **spec: object) -> LoadedModel:
    return load(ModelSpec.model_validate({"spec": str(path), **spec}))


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "{0: 'cat', 1: 'dog', 2: 'ant'}"},  # ultralytics writes Python
        {"class_names": json.dumps(NAMES)},
        {"id2label": json.dumps(dict(enumerate(NAMES)))},
        {"class_to_idx": json.dumps({name: index for index, name in enumerate(NAMES)})},
        {"labels": "cat\ndog\nant"},
        {"classes": "cat, dog, ant"},
    ],
)
def test_class_names(tmp_path: Path, metadata: dict[str, str]) -> None:
    model = _load(_save(tmp_path / "m.onnx", **metadata))
    assert model.labels == NAMES
    assert model.metadata == ("3 labels",)


@pytest.mark.parametrize("text", ["{0: 'cat', 2: 'dog'}", "[1, 2]", "cat", "{", "__import__('os')", "(" * 10_000, ""])
def test_names_that_say_nothing_are_left_out(text: str) -> None:
    assert read_metadata({"names": text}).labels is None


@pytest.mark.parametrize("size", ["[16, 24]", "16x24", '{"height": 16, "width": 24}', "[3, 16, 24]"])
def test_the_size_of_a_dynamic_graph(tmp_path: Path, size: str) -> None:
    path = _save(tmp_path / "m.onnx", sides=("h", "w"), image_size=size)
    assert _load(path).preprocess.size == (16, 24)
    assert load(ModelSpec(spec=str(path)), size=(32, 8)).preprocess.size == (32, 8)
    fixed = _save(tmp_path / "fixed.onnx", image_size=size)
    assert _load(fixed).preprocess.size == (8, 8)  # the graph knows better


def test_ultralytics_detectors_letterbox_on_grey_and_classifiers_crop(tmp_path: Path) -> None:
    model = _load(
        _save(tmp_path / "d.onnx", author="Ultralytics", task="detect", imgsz="[8, 8]", names=str(list(NAMES)))
    )
    steps = model.preprocess
    assert (steps.resize, steps.fill, steps.mean, steps.std) == ("letterbox", (114,) * 3, (0.0,) * 3, (1.0,) * 3)
    assert (model.assumed, model.labels) == ({}, NAMES)
    crops = _load(_save(tmp_path / "c.onnx", author="Ultralytics", task="classify"))
    assert (crops.preprocess.resize, crops.assumed) == ("shortest", {})


def test_the_images_metadata_of_the_onnx_standard(tmp_path: Path) -> None:
    keys = {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"}
    steps = _load(_save(tmp_path / "m.onnx", **keys)).preprocess
    assert (steps.channel_order, steps.mean) == ("bgr", (0.0,) * 3)
    assert steps.std == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize("scale", [1, 255])
def test_statistics_for_bytes_or_shares(tmp_path: Path, scale: int) -> None:
    mean, std = [0.4 * scale] * 3, [0.2 * scale] * 3
    model = _load(_save(tmp_path / "m.onnx", mean=json.dumps(mean), std=json.dumps(std)))
    assert model.preprocess.mean == pytest.approx((0.4,) * 3)
    assert model.preprocess.std == pytest.approx((0.2,) * 3)
    assert list(model.assumed) == ["interpolation", "resize"]


@pytest.mark.parametrize(
    ("mean", "std"),
    [("[1e9, 0, 0]", "[1, 1, 1]"), ("[0, 0]", "[1, 1]"), ("[0, 0, 0]", "[0, 1, 1]"), ("0", "1"), ("[NaN]", "[1]")],
)
def test_statistics_that_cannot_be_are_left_out(mean: str, std: str) -> None:
    assert read_metadata({"mean": mean, "std": std}).steps == {}


def test_what_a_file_does_not_say_is_assumed_and_the_user_can_say_it(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx")
    assert list(_load(path).assumed) == ["mean", "interpolation", "resize"]
    said = _load(path, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", resize="exact", crop_pct=0.9)
    assert said.assumed == {}
    steps = said.preprocess
    assert (steps.mean, steps.std, steps.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bilinear")
    assert (steps.resize, steps.crop_pct) == ("exact", 0.9)


def test_grey_models(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", channels=1)
    assert _load(path).assumed["mean"] == "mean and std 0.5"
    assert _load(path, mean=(0.3,), std=(0.2,)).preprocess.mean == (0.3,)
    with pytest.raises(SourceError, match=r"takes 1 channels, and --mean has 3"):
        _load(path, mean=(0.3,) * 3, std=(0.2,) * 3)


def test_a_crop_of_a_letterbox_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no meaning for --resize letterbox"):
        _load(_save(tmp_path / "m.onnx"), resize="letterbox", crop_pct=0.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.5]}, "mean and std belong together"),
        ({"mean": [0.5], "std": [0.5, 0.5, 0.5]}, "mean has 1 values and std 3"),
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "divide those for 0 to 255 by 255"),
        ({"mean": [0.5], "std": [0.0]}, "from 0 to 1"),
        ({"crop_pct": 0.0}, "greater than 0"),
    ],
)
def test_wrong_statistics(given: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compose("m.onnx", target="openvino", **given)  # type: ignore[arg-type]


def test_flags_change_the_preprocessing_of_a_recipe() -> None:
    base = compose("m.onnx", target="openvino").model_copy(
        update={"preprocess": compose("x", target="openvino").preprocess}
    )
    raw = {**base.model_dump(mode="json"), "preprocess": {"size": [8, 8]}}
    recipe = type(base).model_validate(raw)
    changed = compose(base=recipe, mean=[0.5], std=[0.5], crop_pct=0.5).preprocess
    assert changed is not None
    assert (changed.channels, changed.mean, changed.crop_pct, changed.size) == (1, (0.5,), 0.5, (8, 8))
    with pytest.raises(ValueError, match=r"model\.crop_pct has no effect beside preprocess"):
        type(base).model_validate({**raw, "model": {"spec": "m.onnx", "crop_pct": 0.5}})
