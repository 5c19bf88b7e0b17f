"""Triton itself, from the wheel of PyTriton: it serves what `package --backend python` wrote, unedited.

The environment is made with pip, so this runs once a week and by hand. `benchmarks/served.py` measures the same.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.served import TARGETS, measure
from benchmarks.tritonserver import Client, serve
from benchmarks.venvs import ToolError, make_venv
from vitdeploy.artifact import Artifact
from vitdeploy.commands.package import package
from vitdeploy.commands.predict import Deployed

pytestmark = pytest.mark.long

# Triton's own schema, which is in the environment of the server.
READ = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        print(text_format.Parse(file.read(), model_config_pb2.ModelConfig()).name)
"""


@pytest.mark.parametrize("target", TARGETS)
def test_the_answers_are_those_of_predict(target: str) -> None:
    """`measure` compares every answer."""
    rows = measure(target, requests=40)
    assert [row[1] for row in rows] == ["bare session", "Triton, tensor", "Triton, tensor", "Triton, PNG"]


def test_boxes_and_damaged_files(made: Callable[..., Artifact], photos: list[Path], tmp_path: Path) -> None:
    artifact = made("yolos")
    package(artifact, "triton", tmp_path / "out", {"backend": "python", "ensemble": True})
    with Deployed(artifact.path) as deployed:
        expected = deployed.predict([str(photo) for photo in photos])
    with serve(tmp_path / "out") as port, Client(port) as client:
        with pytest.raises(ToolError, match="cannot be decoded"):
            client.infer("yolos-images", {"IMAGE": np.array([b"no picture"], np.object_)})
        for photo, prediction in zip(photos, expected, strict=True):
            answer = client.infer("yolos-images", {"IMAGE": np.array([photo.read_bytes()], np.object_)})
            there = answer["CLASS"][0] >= 0
            assert list(answer["CLASS"][0][there]) == [box.index for box in prediction.boxes]
            boxes = np.array([box.box for box in prediction.boxes]).reshape(-1, 4)
            np.testing.assert_allclose(answer["BOX"][0][there], boxes, atol=0.01)
    assert any(prediction.boxes for prediction in expected)


def test_clients_get_their_own_answers(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    """A request of several images, and a label from Triton's own reading of labels.txt."""
    artifact = demo(target="onnxruntime", batch="1:2:4")
    package(artifact, "triton", tmp_path / "out", {"backend": "python", "ensemble": True, "name": "digits"})
    pictures = []
    for shade in (0, 90, 255):
        content = io.BytesIO()
        Image.fromarray(np.full((20, 30), shade, np.uint8)).save(content, "PNG")
        pictures.append(content.getvalue())
    with serve(tmp_path / "out") as port, Client(port) as client:
        joined = client.infer("digits-images", {"IMAGE": np.array([[p] for p in pictures], np.object_)})
        alone = [client.infer("digits-images", {"IMAGE": np.array([[p]], np.object_)}) for p in pictures]
        config = client.describe("digits")
    for name in ("CLASS", "LABEL"):
        np.testing.assert_array_equal(joined[name], np.concatenate([answer[name] for answer in alone]))
    assert config["output"][0]["label_filename"] == "labels.txt"
    assert config["max_batch_size"] == 4


def test_every_configuration_fits_tritons_schema(
    demo: Callable[..., Artifact], made: Callable[..., Artifact], tmp_path: Path
) -> None:
    """Those for the backends that are not here, too."""
    for target in TARGETS:
        for batch in ("1", "1:2:4"):
            name = f"{target}-{batch[-1]}"
            artifact = demo(target=target, batch=batch)
            package(artifact, "triton", tmp_path / name, {"ensemble": True, "name": name})
    package(made("yolos"), "triton", tmp_path / "yolos", {"ensemble": True})
    configs = sorted(tmp_path.glob("*/*/config.pbtxt"))
    command = [make_venv("triton"), "-c", READ, *configs]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert read == [config.parent.name for config in configs]
    assert len(configs) == 5 * 4
