"""Outputs whose first axis is not the batch, nested outputs and None are no error: a task reads what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import scenes
from tests.cli.conftest import run
from vitdeploy.artifact import load
from vitdeploy.onnx_export import find_batch_axes

IMAGES = 5
DETECTOR = """
import torch
from torch import nn
from transformers.utils import ModelOutput


class Detector(nn.Module):
    '''Returns what detectors of transformers return: the hidden states of all layers, too, and a tuple and None.'''

    def __init__(self, turned):
        super().__init__()
        torch.manual_seed(0)
        self.turned = turned
        self.patch, self.norm, self.qkv = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32), nn.Linear(32, 96)
        self.proj, self.score, self.box = nn.Linear(32, 32), nn.Linear(32, 6), nn.Linear(32, 4)
        self.vitdeploy_preprocess = {"size": [48, 48]}

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = x + self.proj(attended)
        boxes = self.box(y).sigmoid()
        if self.turned:
            boxes = self.box(y).transpose(1, 2).contiguous().sigmoid()
        states = torch.stack([x, y])
        return ModelOutput(
            intermediate_hidden_states=states, loss=None, all_states=(x, (y, None)), logits=self.score(y),
            mean=states.mean(), pred_boxes=boxes,
        )


def usual():
    return Detector(False).eval()


def turned():
    return Detector(True).eval()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write(tmp_path_factory.mktemp("scenes") / "data", IMAGES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    file = tmp_path_factory.mktemp("model") / "detector.py"
    file.write_text(DETECTOR)
    return file


def answer(*words: object) -> Any:
    ended = run(*words, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        ("turned", ("--target", "openvino", "--precision", "int8", "--max-drop", 50)),
        ("usual", ("--target", "onnxruntime", "--batch", 2)),  # as many images as layers, and a last image alone
    ],
    ids=["openvino-int8-max-drop", "onnxruntime-batch-2"],
)
def test_a_detector_with_outputs_of_all_layers(
    factory: str, options: tuple[object, ...], model: Path, data: Path, tmp_path: Path
) -> None:
    out, spec = tmp_path / "out", f"python:{model}:{factory}"
    chosen = ("--task", "detection", "--all-outputs")
    answer("export", spec, *chosen, "--calibration", data / "images", *options, "-o", out)
    outputs = {output.name: output.shape for output in load(out).manifest.outputs}
    assert list(outputs) == ["intermediate_hidden_states", "logits", "mean", "pred_boxes"]
    assert (outputs["intermediate_hidden_states"][0], outputs["mean"]) == (2, ())
    image = next((data / "images").iterdir())
    (prediction,) = answer("predict", out, image)["predictions"]
    assert prediction["task"] == "detection"
    evaluation = answer("eval", out, "--data", data, "--model", spec)
    assert evaluation["n"] == IMAGES
    assert evaluation["agreement"] > 0.9


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        (((2, 5), (1, 5)), 0),
        (((6, 2, 5), (6, 1, 5)), 1),
        (((2, 2, 5), (2, 1, 5)), 1),
        (((6, 5), (6, 5)), None),
        (((), ()), None),
    ],
)
def test_the_axis_of_the_batch_is_found_from_two_batch_sizes(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], axis: int | None
) -> None:
    examples = [
        (np.zeros((size, 3, 8, 8)), {"out": np.zeros(shape)}) for size, shape in zip((2, 1), shapes, strict=True)
    ]
    assert find_batch_axes(examples) == {"out": axis}
