"""Models of clips from every source: what they take, their preprocessing, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from tests.clips import FRAMES, MODELS, SIDE, save_model
from vitdeploy.data.frames import clip_pixels
from vitdeploy.data.pixel_check import compare_pixels
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import GraphError, SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import load


@pytest.mark.parametrize("name", MODELS)
def test_transformers_models_of_clips(name: str, tmp_path: Path) -> None:
    own = save_model(name, tmp_path)
    model = load(ModelSpec(spec=f"hf:{tmp_path}"))
    assert (model.preprocess.frames, model.preprocess.size) == (FRAMES, (SIDE, SIDE))
    assert model.task is not None
    assert model.task.kind == "classification"
    assert model.processor is not None
    check = compare_pixels(model.processor, model.preprocess)
    assert check.equal, check.why
    assert model.module is not None
    clip = torch.randn(2, FRAMES, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(model.module(clip)["logits"], own(clip).logits)


def test_a_whole_clip_is_prepared_as_the_models_own_processor_does(tmp_path: Path) -> None:
    save_model("timesformer", tmp_path)
    model, processor = load(ModelSpec(spec=f"hf:{tmp_path}")), transformers.AutoVideoProcessor.from_pretrained(tmp_path)
    frames = [Image.effect_noise((70, 50), 60 + 9 * number).convert("RGB") for number in range(FRAMES)]
    theirs = processor(videos=[frames], return_tensors="np")["pixel_values"][0]
    ours = normalize(clip_pixels(frames, model.preprocess), model.preprocess)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1.01 / 255 / min(model.preprocess.std)


def test_the_number_of_frames_is_an_argument(tmp_path: Path) -> None:
    save_model("videomae", tmp_path)
    spec = ModelSpec(spec=f"hf:{tmp_path}", weights="random", kwargs={"num_frames": 8})
    assert load(spec).preprocess.frames == 8


def test_an_image_model_whose_config_has_frames_takes_images(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        num_frames=4,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    assert load(ModelSpec(spec=f"hf:{tmp_path}")).preprocess.frames is None


class Mean(nn.Module):
    """Classes from the mean colour of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * FRAMES, 2)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(clips.mean(dim=(-1, -2)).flatten(1))
        return result


def test_an_exported_program_of_clips(tmp_path: Path) -> None:
    program = torch.export.export(Mean().eval(), (torch.zeros(1, FRAMES, 3, 16, 24),))
    torch.export.save(program, tmp_path / "m.pt2")
    model = load(ModelSpec(spec=str(tmp_path / "m.pt2")))
    assert (model.preprocess.frames, model.preprocess.size) == (FRAMES, (16, 24))


def test_a_factory_says_that_it_takes_clips(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from tests.sources.test_clips import Mean\n\n"
        "def make():\n    model = Mean()\n    model.vitdeploy_preprocess = {'size': (16, 24), 'frames': 4}\n"
        "    return model\n"
    )
    assert load(ModelSpec(spec=f"python:{tmp_path / 'm.py'}:make")).preprocess.sample_shape == (4, 3, 16, 24)


def _save_graph(path: Path, shape: list[Any]) -> ModelSpec:
    mean = helper.make_node("ReduceMean", ["clips"], ["out"], axes=[-1, -2, -3], keepdims=0)
    graph = helper.make_graph(
        [mean], "g", [helper.make_tensor_value_info("clips", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", None])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return ModelSpec(spec=str(path))


def test_an_onnx_file_of_clips(tmp_path: Path) -> None:
    model = load(_save_graph(tmp_path / "m.onnx", ["b", 4, 3, 16, 24]))
    assert (model.preprocess.frames, model.preprocess.size) == (4, (16, 24))
    grey = load(_save_graph(tmp_path / "g.onnx", ["b", 4, 1, 16, 24]))
    assert (grey.preprocess.frames, grey.preprocess.channels) == (4, 1)


@pytest.mark.parametrize("shape", [["b", 3, 8, 16, 24], ["b", "frames", 3, 16, 24], ["b", 8, 16, 24, 3]])
def test_an_onnx_file_with_another_order_of_axes_is_refused(shape: list[Any], tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"is not clips as \(batch, frames, channels, height, width\)"):
        load(_save_graph(tmp_path / "m.onnx", shape))


def test_clips_have_one_size(tmp_path: Path) -> None:
    spec = _save_graph(tmp_path / "m.onnx", ["b", 4, 3, "h", "w"]).spec
    assert load(ModelSpec(spec=spec), size=(16, 24)).preprocess.size == (16, 24)
    ranged = ModelSpec.model_validate({"spec": spec, "image_size": "16x16:16x24:32x32"})
    with pytest.raises(SourceError, match="takes clips, which have one size"):
        load(ranged, size=(16, 24))
