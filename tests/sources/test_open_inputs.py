"""Inputs beside the image that stay open: read with their examples, from every source, and every mistake in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from benchmarks.zoo.models import redraw
from tests.further_inputs import SIDE, SPEC, Conditioned, conditioned, save_examples, stereo
from vitdeploy.errors import DataError, RecipeError, SourceError, VitdeployError
from vitdeploy.recipe import ModelSpec, compose, parse_examples, read
from vitdeploy.runtime.reference import open_reference
from vitdeploy.session import Array
from vitdeploy.sources import LoadedModel, load


def _spec(spec: str, examples: dict[str, str], **options: Any) -> ModelSpec:
    return ModelSpec.model_validate({"spec": spec, "inputs": examples, **options})


def _save_onnx(path: Path, names: list[str]) -> Path:
    """Save `conditioned` with its inputs in this order."""

    class Ordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = conditioned()

        def forward(self, *values: torch.Tensor) -> Any:
            return self.model(**dict(zip(names, values, strict=True)))

    zeros = {"image": torch.zeros(2, 3, SIDE, SIDE), "point": torch.zeros(2, 2), "camera": torch.zeros(2).long()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Ordered().eval(), tuple(zeros[name] for name in names), str(path), dynamo=False, opset_version=17,
            input_names=names, output_names=["logits"], dynamic_axes={name: {0: "N"} for name in names},
        )  # fmt: skip
    return path


def _run(model: LoadedModel, image: Array) -> Array:
    with open_reference(model, threads=None) as session:
        (output,) = session.run({model.input_name: image, **model.further.take(len(image), 1)}).values()
    return output


@pytest.mark.parametrize("source", ["python", "onnx", "onnx-image-last", "pt2"])
def test_every_source_keeps_inputs_open(source: str, tmp_path: Path) -> None:
    own, examples, spec = conditioned(), save_examples(tmp_path), SPEC
    if source.startswith("onnx"):
        order = ["image", "point", "camera"] if source == "onnx" else ["camera", "point", "image"]
        spec = str(_save_onnx(tmp_path / "m.onnx", order))
    elif source == "pt2":
        batch, spec = torch.export.Dim("batch", min=1, max=8), str(tmp_path / "m.pt2")
        arguments = (torch.zeros(2, 3, SIDE, SIDE), torch.zeros(2, 2), torch.zeros(2).long())
        torch.export.save(torch.export.export(own, arguments, dynamic_shapes=({0: batch},) * 3), spec)
    model = load(_spec(spec, examples))
    assert {name: (a.dtype.name, a.shape) for name, a in model.further.arrays.items()} == {
        "point": ("float32", (7, 2)), "camera": ("int64", (4,)),
    }  # fmt: skip
    image = np.random.default_rng(0).standard_normal((5, 3, SIDE, SIDE)).astype(np.float32)
    point, camera = (np.load(path)[key] for path, key in ((examples["point"], "point"), (examples["camera"], "arr_0")))
    rows = np.arange(1, 6)
    with torch.no_grad():
        expected = own(
            torch.from_numpy(image), torch.from_numpy(point[rows % 7].astype(np.float32)),
            torch.from_numpy(camera[rows % 4]),
        )  # fmt: skip
    np.testing.assert_allclose(_run(model, image), expected, atol=1e-5)


def test_one_is_fixed_and_the_other_open(tmp_path: Path) -> None:
    examples = save_examples(tmp_path)
    spec = _spec(SPEC, {"point": examples["point"]}, bind={"camera": [3]})
    assert list(load(spec).further.arrays) == ["point"]
    by_value = ModelSpec.model_validate(
        {"spec": SPEC, "inputs": {"point": examples["point"], "camera": {"value": [3]}}}
    )
    image = np.ones((2, 3, SIDE, SIDE), np.float32)
    with pytest.raises(SourceError, match=r"Expected size 2|must match"):  # one camera for two images
        _run(load(spec), image)
    np.testing.assert_array_equal(_run(load(spec), image[:1]), _run(load(by_value), image[:1]))
    assert load(spec).digest == load(by_value).digest


@pytest.mark.parametrize("given", ["left", "right"])
def test_either_of_two_images_may_be_given(given: str, tmp_path: Path) -> None:
    spec = "python:tests.further_inputs:stereo"
    np.savez(tmp_path / "view.npz", np.random.default_rng(0).standard_normal((3, 3, SIDE, SIDE)))
    model = load(_spec(spec, {given: str(tmp_path / "view.npz")}))
    image = np.random.default_rng(1).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    other = {"left": "right", "right": "left"}[given]
    with torch.no_grad():
        views = {given: torch.from_numpy(model.further.take(2, 1)[given]), other: torch.from_numpy(image)}
        np.testing.assert_allclose(_run(model, image), stereo()(**views), atol=1e-5)
    with pytest.raises(SourceError, match="needs right beside the image 'left', which is not given") as error:
        load(ModelSpec(spec=spec))
    assert "--bind right=VALUE" in error.value.fix
    assert "--examples right=FILE.npz" in error.value.fix


_BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"point": np.ones((2, 2)), "pont": np.ones((2, 2))}, r"no input 'pont' .*did you mean 'point'"),
    "missing": ({"point": np.ones((2, 2))}, r"camera \(int64, \[batch\]\), which is not given|needs camera"),
    "shape": ({"point": np.ones((2, 3)), "camera": np.ones(2, int)}, r"shape \[2, 3\], and the input takes point"),
    "type": ({"point": np.ones((2, 2)), "camera": np.full(2, 0.5)}, "are float32, and the input takes camera"),
    "empty": ({"point": np.ones((0, 2)), "camera": np.ones(2, int)}, "without an axis of examples, or none"),
    "scalar": ({"point": np.float32(1), "camera": np.ones(2, int)}, "without an axis of examples, or none"),
    "text": ({"point": np.array(["a"]), "camera": np.ones(2, int)}, "or not finite"),
    "infinite": ({"point": np.full((2, 2), np.inf), "camera": np.ones(2, int)}, "or not finite"),
}


@pytest.mark.parametrize("case", _BAD)
def test_examples_that_do_not_fit(case: str, tmp_path: Path) -> None:
    path, files = _save_onnx(tmp_path / "m.onnx", ["image", "point", "camera"]), {}
    arrays, message = _BAD[case]
    for name, array in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **{name: array})
        files[name] = str(tmp_path / f"{name}.npz")
    with pytest.raises(VitdeployError, match=message):
        load(_spec(str(path), files))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(DataError, match="has no array 'point', but a, b"):
        load(_spec(SPEC, {"point": str(tmp_path / "two.npz"), "camera": str(tmp_path / "two.npz")}))
    with pytest.raises(DataError, match=r"nothing\.npz cannot be read"):
        load(_spec(SPEC, {"point": str(tmp_path / "nothing.npz")}))
    with pytest.raises(RecipeError, match=r"--examples point=p\.json is no file \.npz"):
        parse_examples(["point=p.json"])
    with pytest.raises(RecipeError, match=r"--examples 'point' is not NAME=FILE\.npz"):
        parse_examples(["point"])


def test_models_that_take_images_only() -> None:
    for options in ({"inputs": {"x": {"examples": "x.npz"}}}, {"bind": {"x": 1}}):
        spec = ModelSpec.model_validate({"spec": "demo:digits", **options})
        with pytest.raises(SourceError, match="demo:digits takes images only"):
            load(spec)


def test_a_recipe_lists_inputs(tmp_path: Path) -> None:
    text = (
        "model:\n  spec: m.onnx\n  inputs:\n    point: {examples: p.npz, dtype: float32, shape: [batch, 2]}\n"
        "    camera: c.npz\n    size: {value: [[1, 2]]}\ntarget: {kind: openvino}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    model = read(tmp_path / "r.yaml").model
    assert model.inputs["point"].examples == str(tmp_path / "p.npz")
    assert model.inputs["camera"].examples == str(tmp_path / "c.npz")
    assert model.fixed_inputs == {"size": [[1, 2]]}
    assert list(model.open_inputs) == ["point", "camera"]
    base = read(tmp_path / "r.yaml")
    assert compose(base=base, bind={"point": [1, 2]}).model.fixed_inputs == {"point": [1, 2], "size": [[1, 2]]}
    assert compose(base=base, examples={"size": "s.npz"}).model.fixed_inputs == {}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("{p: {}}", "give a value, which fixes the input, or examples"),
        ("{p: {value: 1, examples: p.npz}}", "give a value, which fixes the input, or examples"),
        ("{p: {value: 1, dtype: int64}}", "dtype and shape are for examples"),
        ("{p: {examples: p.npz, shape: [2]}}", r"shape begins with batch: \[batch, 4\]"),
        ("{p: {examples: p.npz, dtype: string}}", "'float32', .* not 'string'"),
        ("{p: {example: p.npz}}", "did you mean 'examples'"),
    ],
)
def test_wrong_inputs_of_a_recipe(inputs: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"model: {{spec: m.onnx, inputs: {inputs}}}\ntarget: {{kind: openvino}}\n")
    with pytest.raises(RecipeError, match=message):
        read(tmp_path / "r.yaml")


def test_a_range_of_sizes_is_for_one_input() -> None:
    with pytest.raises(RecipeError, match="a range of image sizes is for models with one input"):
        compose("m.onnx", target="openvino", image_size="16x16:32x32:64x64", examples={"p": "p.npz"})


def test_stated_types_and_shapes_are_checked(tmp_path: Path) -> None:
    examples = save_examples(tmp_path)
    camera = {"examples": examples["camera"], "dtype": "int32", "shape": ["batch"]}
    model = load(ModelSpec.model_validate({"spec": SPEC, "inputs": {"point": examples["point"], "camera": camera}}))
    assert model.further.arrays["camera"].dtype == np.int32
    for wrong, message in (
        ({"shape": ["batch", 2]}, r"have the shape \[\] each, and the recipe says \[2\]"),
        ({"dtype": "bool"}, "and the input takes bool"),
    ):
        spec = {"spec": SPEC, "inputs": {"point": examples["point"], "camera": {**camera, **wrong}}}
        if "dtype" not in wrong:
            spec["inputs"]["camera"].pop("dtype")  # type: ignore[index]
        with pytest.raises(DataError, match=message):
            load(ModelSpec.model_validate(spec))


def _save_blip(folder: Path) -> Any:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 50, "encoder_hidden_size": 16, "bos_token_id": 1, "pad_token_id": 0,
            "eos_token_id": 2, "sep_token_id": 3}  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text, vision_config={**small, "image_size": SIDE, "patch_size": 8}, projection_dim=16
    )
    model = redraw(transformers.BlipForImageTextRetrieval(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("way", ["bound", "open"])
def test_the_text_of_a_transformers_model_is_fixed_or_open(way: str, tmp_path: Path) -> None:
    own = _save_blip(tmp_path / "blip")
    ids = np.array([[5, 9, 11, 2], [7, 30, 4, 2], [6, 6, 8, 2]])
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    options = (
        {"inputs": {"input_ids": str(tmp_path / "ids.npz")}} if way == "open" else {"bind": {"input_ids": ids[1:2]}}
    )
    model = load(ModelSpec.model_validate({"spec": f"hf:{tmp_path / 'blip'}", **options}))
    image = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    with open_reference(model, threads=None) as session, torch.no_grad():
        outputs = session.run({"pixel_values": image, **model.further.take(1, 1)})
        expected = own(pixel_values=torch.from_numpy(image), input_ids=torch.from_numpy(ids[1:2]))
    np.testing.assert_allclose(outputs["itm_score"], expected.itm_score, atol=1e-5)


def test_conditioned_needs_its_inputs() -> None:
    """The toy answers otherwise with another point, so that a mixed-up input shows."""
    model = Conditioned().eval()
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        outputs = [model(image, torch.tensor([[x, 0.0]]), torch.tensor([1])) for x in (0.0, 5.0)]
    assert not torch.allclose(*outputs, atol=1e-3)
