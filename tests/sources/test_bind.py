"""Inputs beside the image: fixed with `bind`, or named with the flag to type."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import GraphError, RecipeError, SourceError, VitdeployError
from vitdeploy.recipe import ModelSpec, compose, parse_binds, read
from vitdeploy.session import named_outputs
from vitdeploy.sources import LoadedModel, load, load_received

SIDE = 32
SIZES = [[640, 480]]
FACTORY = """
from tests.sources.test_bind import Detector
def make(): return Detector()
"""


class Detector(nn.Module):
    """Boxes in pixels of the original image, as official RT-DETR and D-FINE exports give them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.boxes = nn.Linear(6, 4)

    def forward(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return tokens, self.boxes(tokens).sigmoid() * orig_target_sizes.repeat(1, 2)[:, None].float()


class Stereo(nn.Module):
    """Two images."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left - right).mean((2, 3))


def _save_onnx(path: Path, module: nn.Module, second: Tensor, names: list[str]) -> Path:
    axes = {name: {0: "N"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, SIDE, SIDE), second), str(path), dynamo=False, opset_version=17,
            input_names=names, output_names=["logits", "pred_boxes"][: 2 if isinstance(module, Detector) else 1],
            dynamic_axes=axes,
        )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    names, sizes = ["images", "orig_target_sizes"], torch.tensor(SIZES)
    _save_onnx(root / "detector.onnx", Detector(), sizes, names)
    _save_onnx(root / "stereo.onnx", Stereo(), torch.zeros(1, 3, SIDE, SIDE), ["left", "right"])
    torch.export.save(torch.export.export(Detector(), (torch.zeros(1, 3, SIDE, SIDE), sizes)), root / "detector.pt2")
    (root / "factory.py").write_text(FACTORY)
    np.savez(root / "sizes.npz", orig_target_sizes=np.array(SIZES), other=np.ones(3))
    np.savez(root / "only.npz", anything=np.array(SIZES))
    np.savez(root / "halves.npz", orig_target_sizes=np.array([[0.5, 1.5]]))
    np.savez(root / "two.npz", a=np.ones(3), b=np.ones(3))
    return root


def _spec(root: Path, name: str) -> str:
    return f"python:{root}/factory.py:make" if name == "python" else str(root / name)


def _load(root: Path, name: str, **bind: Any) -> LoadedModel:
    size = (SIDE, SIDE) if name == "python" else None
    return load(ModelSpec(spec=_spec(root, name), bind=bind), size=size)


def _run(model: LoadedModel, images: np.ndarray) -> Mapping[str, np.ndarray]:
    if model.onnx is not None:
        session = ort.InferenceSession(str(model.onnx), providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == [model.input_name]
        return dict(zip(["logits", "pred_boxes"], session.run(None, {model.input_name: images}), strict=True))
    assert model.module is not None
    with torch.inference_mode():
        answer = named_outputs(model.module(torch.from_numpy(images)))
    return dict(zip(["logits", "pred_boxes"], [value.numpy() for value in answer.values()], strict=True))


@pytest.mark.parametrize("name", ["detector.onnx", "detector.pt2", "python"])
def test_a_bound_input_is_a_constant(files: Path, name: str) -> None:
    images = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    with torch.inference_mode():
        expected = Detector()(torch.from_numpy(images), torch.tensor(SIZES))
    model = _load(files, name, orig_target_sizes=SIZES)
    outputs = _run(model, images)
    np.testing.assert_allclose(outputs["pred_boxes"], expected[1].numpy(), rtol=1e-5, atol=1e-3)
    from_file = _load(files, name, orig_target_sizes=str(files / "sizes.npz"))
    assert from_file.digest == model.digest
    assert _load(files, name, orig_target_sizes=[[1, 1]]).digest != model.digest


@pytest.mark.parametrize("name", ["detector.onnx", "detector.pt2"])
def test_the_axis_of_the_batch_may_be_left_out(files: Path, name: str) -> None:
    digests = {_load(files, name, orig_target_sizes=value).digest for value in (SIZES, SIZES[0])}
    assert len(digests) == 1
    assert _load(files, name, orig_target_sizes=str(files / "only.npz")).digest in digests


@pytest.mark.parametrize("name", ["detector.onnx", "detector.pt2", "python"])
def test_an_input_that_is_not_bound_is_named_with_the_flag(files: Path, name: str) -> None:
    needs = r"beside the image 'images' it needs orig_target_sizes \(int64, \[(batch|1), 2\]\)"
    needs = r"needs orig_target_sizes beside the image" if name == "python" else needs
    flag = "--bind orig_target_sizes=" + ("VALUE" if name == "python" else r"\[\[32,32\]\]")
    with pytest.raises(VitdeployError, match=rf"{needs}.*{flag}") as caught:
        _load(files, name)
    if name != "python":  # what it says to type works
        text = re.search(
            r"--bind (\S+), or keep it open with --examples orig_target_sizes=FILE\.npz\.$", str(caught.value)
        )
        assert text is not None
        assert _load(files, name, **parse_binds([text[1]])).digest


@pytest.mark.parametrize("name", ["detector.onnx", "detector.pt2", "python"])
def test_an_unknown_input_names_the_nearest(files: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"no input 'orig_sizes' to bind \(did you mean 'orig_target_sizes'\?\)"):
        _load(files, name, orig_sizes=SIZES)


@pytest.mark.parametrize("name", ["detector.onnx", "detector.pt2"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param([1, 2, 3], r"has the shape \[3\], and the input takes orig_target_sizes \(int64", id="shape"),
        pytest.param([[[1, 2]]], r"has the shape \[1, 1, 2\]", id="rank"),
        pytest.param([[0.5, 1.5]], r"is float32, and the input takes .*Give int64", id="type"),
        pytest.param("halves.npz", r"is float64, and the input takes .*Give int64", id="type in a file"),
        pytest.param("two.npz", r"has no array 'orig_target_sizes', but a, b", id="another array"),
        pytest.param("none.npz", r"none.npz cannot be read", id="no file"),
        pytest.param("words", r"is neither numbers nor a file .npz", id="words"),
        pytest.param([[1], [1, 2]], r"is no array of numbers", id="ragged"),
        pytest.param([], r"is no array of numbers", id="empty"),
    ],
)
def test_a_value_that_does_not_fit(files: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(VitdeployError, match=message):
        _load(files, name, orig_target_sizes=str(files / value) if isinstance(value, str) else value)


def test_of_two_images_one_has_to_be_given(files: Path, tmp_path: Path) -> None:
    needs = (
        r"beside the image 'left' it needs right \(float32, \[batch, 3, 32, 32\]\), which is not given\. "
        r"Fix it with --bind right=FILE\.npz, or keep it open with --examples right=FILE\.npz\.$"
    )
    with pytest.raises(GraphError, match=needs):
        _load(files, "stereo.onnx")
    np.savez(tmp_path / "view.npz", np.ones((1, 3, SIDE, SIDE), np.float32))
    assert _load(files, "stereo.onnx", right=str(tmp_path / "view.npz")).input_name == "left"
    assert _load(files, "stereo.onnx", left=str(tmp_path / "view.npz")).input_name == "right"


def test_a_received_model_reads_no_file_for_its_inputs(files: Path) -> None:
    spec = ModelSpec(spec=str(files / "detector.onnx"), bind={"orig_target_sizes": str(files / "sizes.npz")})
    with pytest.raises(SourceError, match=r"the input orig_target_sizes in the file .*--trust-code"):
        load_received(spec)
    assert load_received(ModelSpec(spec=spec.spec, bind={"orig_target_sizes": SIZES})).digest


def test_values_of_the_command_line() -> None:
    texts = ["a=[[640, 480]]", "b=640,480", "c=3", "d=x/y.npz", "e=true", "f=0.5"]
    expected = {"a": [[640, 480]], "b": [640, 480], "c": 3, "d": "x/y.npz", "e": True, "f": 0.5}
    assert parse_binds(texts) == expected
    with pytest.raises(RecipeError, match=r"--bind '640' is not NAME=VALUE"):
        parse_binds(["640"])


def test_a_recipe_binds_too(tmp_path: Path) -> None:
    text = "model: {spec: m.onnx, bind: {sizes: [[1, 2]], view: v.npz}}\ntarget: {kind: openvino}\n"
    (tmp_path / "r.yaml").write_text(text)
    recipe = read(tmp_path / "r.yaml")
    assert recipe.model.bind == {"sizes": [[1, 2]], "view": str(tmp_path / "v.npz")}
    assert compose(base=recipe, bind={"sizes": 3}).model.bind == {**recipe.model.bind, "sizes": 3}


def _save_hf(folder: Path, build: Callable[[], Any]) -> ModelSpec:
    build().save_pretrained(folder)
    return ModelSpec(spec=f"hf:{folder}")


def test_what_a_transformers_model_needs_is_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 50, "encoder_hidden_size": 16, "bos_token_id": 1, "pad_token_id": 0,
            "eos_token_id": 2, "sep_token_id": 3}  # fmt: skip
    blip = transformers.BlipConfig(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    spec = _save_hf(tmp_path / "blip", lambda: transformers.BlipForImageTextRetrieval(blip))
    needs = r"\(BlipForImageTextRetrieval\) needs input_ids beside the image.*--bind input_ids=VALUE"
    with pytest.raises(SourceError, match=needs):
        load(spec)
    video = transformers.VideoMAEConfig(**small, image_size=32, patch_size=8, num_frames=4)
    spec = _save_hf(tmp_path / "video", lambda: transformers.VideoMAEForPreTraining(video))
    with pytest.raises(SourceError, match=r"\(VideoMAEForPreTraining\) needs bool_masked_pos beside the image"):
        load(spec)
    bert = transformers.BertConfig(**small, vocab_size=50)
    spec = _save_hf(tmp_path / "bert", lambda: transformers.BertModel(bert))
    with pytest.raises(SourceError, match=r"\(BertModel\) takes input_ids, .* and no pixel_values"):
        load(spec)
