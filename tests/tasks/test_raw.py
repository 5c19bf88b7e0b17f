"""The task for every other model: outputs are named and compared, and nothing else is claimed of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import run as cli
from vitdeploy import tasks
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.tasks.raw import SAMPLED

RNG = np.random.default_rng(0)
TASK = tasks.find(TaskSpec(kind="raw"))
FIRST = {
    "maps": RNG.standard_normal((3, 2, 80, 80)),
    "angles": 1e-3 * RNG.standard_normal((3, 4)),
    "steps": np.arange(5),
}


def difference(changed: dict[str, np.ndarray]) -> list[float]:
    """Return the difference of each image in percent, as `eval` computes it."""
    sides = [TASK.statistics({**FIRST, **outputs}, [-1] * 3).values for outputs in ({}, changed)]
    _, deployed = TASK.pair_statistics(*sides)
    return [100 * float(value) for value in deployed["difference"]]


def test_the_difference_is_that_of_the_worst_output_by_its_own_scale() -> None:
    angles = FIRST["angles"].copy()
    angles[1] *= 1.02  # 0.00002 beside maps of order 1
    assert difference({"angles": angles}) == pytest.approx([0, 2, 0])
    assert difference({"angles": angles, "maps": FIRST["maps"] * 0.97}) == pytest.approx([3, 3, 3])


def test_an_output_without_a_row_for_each_image_is_not_compared() -> None:
    assert difference({"steps": FIRST["steps"] + 1}) == [0, 0, 0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_a_whole_difference(broken: float) -> None:
    angles = FIRST["angles"].copy()
    angles[2, 1] = broken
    assert difference({"angles": angles}) == [0, 0, 100]
    assert list(TASK.compare_outputs(FIRST, {**FIRST, "angles": angles})) == [1, 1, 0]


def test_an_output_of_zeros_differs_from_any_other() -> None:
    zeros = {**FIRST, "angles": np.zeros((3, 4))}
    assert list(TASK.compare_outputs(zeros, zeros)) == [1, 1, 1]
    assert list(TASK.compare_outputs(zeros, FIRST)) == [0, 0, 0]


def test_large_outputs_are_sampled_over_their_whole_length() -> None:
    maps = FIRST["maps"].copy()
    maps[0, 1] += 1  # the second half of the numbers
    assert difference({"maps": maps})[0] > 50
    (answer, *_) = TASK.read_answers({"maps": maps})
    assert answer.shape[1] <= SAMPLED < maps[0].size


def test_outputs_of_other_shapes_are_refused() -> None:
    sides = [TASK.statistics({"maps": FIRST["maps"][..., :size]}, [-1] * 3).values for size in (80, 16)]
    with pytest.raises(DataError, match="other shapes"):
        TASK.pair_statistics(*sides)


def test_a_model_without_batched_outputs_is_refused() -> None:
    with pytest.raises(DataError, match="no output has a row for each image"):
        TASK.read_answers({"count": np.array(3)})


MODEL = """
import torch
from torch import nn

class Keypoints(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32), nn.Linear(32, 17)

    def forward(self, x):
        tokens = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        scores = self.head(tokens)
        return {"heatmaps": scores.transpose(1, 2).reshape(-1, 17, 4, 4), "scale": scores.amax((1, 2)) * 1e-3}

def keypoints():
    return Keypoints().eval()
"""


def test_eval_and_gate_judge_the_difference_without_labels(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "images").mkdir()
    for number in range(8):
        pixels = RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    out, data = tmp_path / "out", tmp_path / "images"
    arguments = ["--target", "onnxruntime", "--task", "raw", "--image-size", "32x32", "-o", out]
    found = cli("export", f"python:{tmp_path / 'model.py'}:keypoints", *arguments, "--no-cache")
    assert found.code == 0, found.err
    found = cli("eval", out, "--data", data, "--json", "--trust-code")
    assert found.code == 0, found.err
    result = json.loads(found.out)
    metric = result["metrics"]["difference"]
    assert metric["reference"] == 0
    assert 0 <= metric["deployed"] < 0.01
    assert cli("gate", out, "--max-drop", "0.1", "--json").code == 0
    predicted = cli("predict", out, data / "0.png").out
    assert "heatmaps  17 x 4 x 4: " in predicted
    assert "scale  one number: " in predicted
