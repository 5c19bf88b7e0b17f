"""Calibration data that says little or nothing: refused with the place, or used with the doubt written down."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Ended, listing, run
from vitdeploy import artifact as artifacts
from vitdeploy.artifact.quantization import CalibrationData

pytestmark = pytest.mark.usefixtures("here")

STANDARDIZED = '''
import torch
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources.demo import Demo


class Standardized(torch.nn.Module):
    """Each image over its own standard deviation, which is 0 where it is of one colour."""

    vitdeploy_preprocess = {"size": (32, 32), "mean": (0.5,), "std": (0.5,), "channels": 1, "resize": "exact"}

    def __init__(self):
        super().__init__()
        self.vit = Demo().load("digits", ModelSpec(spec="demo:digits"), None).module

    def forward(self, x):
        x = x - x.mean((2, 3), keepdim=True)
        return self.vit(x / x.pow(2).mean((2, 3), keepdim=True).sqrt())


def make():
    return Standardized().eval()
'''


def export(target: str, precision: str, data: object, *more: object, model: str = "demo:digits") -> Ended:
    """Calibrate a model on this data, into the folder `a`."""
    words = ("--target", target, "--precision", precision, "--calibration", data, "-o", "a", "--json")
    return run("export", model, *words, *more)


def done(found: Ended) -> tuple[dict[str, Any], CalibrationData]:
    """What the export printed, and what the manifest says about the images."""
    assert found.code == 0, found.err
    record = artifacts.load(Path("a")).manifest.quantized
    assert record is not None
    assert record.calibration is not None
    return json.loads(found.out), record.calibration


def agreement() -> float:
    """Share of the demo's test images that get the same answer as from float32, in percent."""
    found = run("eval", "a", "--data", "demo:digits", "--limit", "100", "--json")
    assert found.code == 0, found.err
    evaluated = json.loads(found.out)
    assert evaluated["n"] == 100
    return float(evaluated["agreement"])


def test_one_image_is_called_into_question_and_works(images: Callable[..., Path]) -> None:
    folder = images(1)
    printed, calibration = done(export("openvino", "int8", folder))
    said = [note for note in printed["notes"] if note.startswith("calibrated on 1 image of")]
    assert len(said) == 1
    assert said[0] in calibration.doubts
    assert calibration.images == 1
    assert agreement() > 0.9


@pytest.mark.parametrize(("target", "precision"), [("openvino", "int8"), ("onnxruntime", "int4-weights")])
def test_black_images_are_called_into_question_and_the_artifact_is_right(target: str, precision: str) -> None:
    np.savez("black.npz", images=np.zeros((40, 32, 32), np.uint8))
    printed, calibration = done(export(target, precision, "black.npz"))
    said = "every calibration image of black.npz is of one plain colour: others may fall out of range"
    assert said in printed["notes"]
    assert said in calibration.doubts
    assert agreement() > 0.5, "less exact, but no wreck"


def test_nan_in_an_activation_is_named_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python itself would leave a __pycache__
    Path("standardized.py").write_text(STANDARDIZED)
    good = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    np.savez("mixed.npz", images=np.concatenate([good, np.zeros((1, 32, 32), np.uint8)]))
    for precision in ("int8", "int8-dynamic", "int4-weights"):
        found = export("onnxruntime", precision, "mixed.npz", model="python:standardized.py:make")
        assert found.code == 1
        assert "vit.blocks.0.norm1/" in found.error
        assert ", the input of vit.blocks.0.attn." in found.error
        assert "is not finite in calibration batch" in found.error
        assert listing(Path.cwd()) == ["mixed.npz", "standardized.py"]


@pytest.mark.parametrize("kind", [np.nan, np.inf, 0.5])
def test_floats_are_no_images(kind: float) -> None:
    np.savez("floats.npz", images=np.full((4, 32, 32), kind, np.float32))
    found = export("openvino", "int8", "floats.npz")
    assert found.code == 1
    assert "its images are float32 (4, 32, 32), not uint8 NHWC or NHW. Save it with" in found.error
    assert listing(Path.cwd()) == ["floats.npz"]


@pytest.mark.parametrize("shape", [(20, 64, 48, 3), (20, 16, 16), (20, 32, 32, 1)])
def test_images_of_another_size_or_colour_are_preprocessed(shape: tuple[int, ...]) -> None:
    np.savez("other.npz", images=np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    printed, calibration = done(export("onnxruntime", "int8-dynamic", "other.npz"))
    assert calibration.images == 20
    assert not [note for note in printed["notes"] if "calibrat" in note]


@pytest.mark.parametrize("shape", [(4, 32, 32, 2), (4, 32, 32, 4), (4, 3, 32, 32), (4, 32)])
def test_images_of_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    np.savez("other.npz", images=np.zeros(shape, np.uint8))
    found = export("openvino", "int8", "other.npz")
    assert found.code == 1
    assert f"its images are uint8 {shape}, not uint8 NHWC or NHW" in found.error


def test_the_number_of_calibration_images_is_an_option_of_the_recipe() -> None:
    Path("r.yaml").write_text(
        "model: demo:digits\ntarget: {kind: openvino}\nprecision: {kind: int8}\ndata: {calibration_images: 40}\n"
    )
    found = run("export", "demo:digits", "--recipe", "r.yaml", "-o", "a", "--json")
    _, calibration = done(found)
    assert calibration.images == 40
    Path("r.yaml").write_text("model: demo:digits\ntarget: {kind: openvino}\ndata: {calibration_images: 0}\n")
    assert "calibration_images should be greater than or equal to 1" in run("run", "r.yaml").error


@pytest.mark.parametrize(
    ("target", "precision", "able"),
    [
        ("onnxruntime", "bf16", "It can do fp32, int8, int8-dynamic, int8-weights, int4-weights."),
        ("onnxruntime", "fp16", "It can do fp32, int8"),
        ("openvino", "fp16", "It can do fp32, bf16, int8"),
        ("tensorrt-rtx", "int4-weights", "It can do fp16, fp32, bf16, int8, fp8."),
        ("tensorrt", "int8-dynamic", "It can do fp16, fp32, bf16, int8, fp8."),
    ],
)
def test_a_precision_that_the_target_cannot_do_names_those_it_can(target: str, precision: str, able: str) -> None:
    found = run("export", "demo:digits", "--target", target, "--precision", precision)
    assert found.code == 1
    assert f"{target} cannot do {precision}. {able}" in found.error


def test_bf16_needs_units() -> None:
    found = run("export", "demo:digits", "--target", "tensorrt-rtx", "--device", "sm75", "--precision", "bf16")
    assert "sm75 has no BF16 units: the first generation with them is sm80. It can do fp16, fp32, int8." in found.error


def test_a_colour_image_in_a_folder_feeds_a_grey_model(tmp_path: Path) -> None:
    folder = tmp_path / "colour"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (50, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    _, calibration = done(export("onnxruntime", "int8-dynamic", folder))
    assert calibration.images == 2
