"""The C++ examples: what `run_onnxruntime` prints is what `predict` answers; `run_tensorrt` compiles."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.examples.conftest import DETECTORS, EXAMPLES, Make, check_equal_to_predict, read_answers
from tests.examples.preprocessings import PREPROCESSINGS
from vitdeploy.data.preprocess import to_pixels
from vitdeploy.recipe import Preprocess

OFF = 0 if int(PIL.__version__.partition(".")[0]) >= 13 else 1
"""Pillow 13 resizes the height first where it shrinks much more than the width, and rounds in between."""

Programs = Mapping[str, Path]


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("form", ["normalized", "pixels", "uint8"])
def test_classes_are_those_of_predict(form: str, programs: Programs, made: Make, photos: list[Path]) -> None:
    artifact = made("classifier", input_form=form)
    result = run(programs["run_onnxruntime"], artifact.path, *photos)
    assert result.returncode == 0, result.stderr
    check_equal_to_predict(artifact, photos, result.stdout)


@pytest.mark.parametrize("detector", DETECTORS)
def test_boxes_are_those_of_predict(detector: str, programs: Programs, made: Make, photos: list[Path]) -> None:
    artifact = made(detector)
    result = run(programs["run_onnxruntime"], artifact.path, *photos)
    assert result.returncode == 0, result.stderr
    assert any(rows for rows in read_answers(result.stdout).values())
    check_equal_to_predict(artifact, photos, result.stdout)


def test_a_grey_model_and_a_batch_that_is_not_1(programs: Programs, made: Make, photos: list[Path]) -> None:
    artifact = made("digits", batch="3")
    result = run(programs["run_onnxruntime"], artifact.path, *photos)
    assert result.returncode == 0, result.stderr
    check_equal_to_predict(artifact, photos, result.stdout)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_pixels_are_vitdeploys_to_the_byte(
    name: str, programs: Programs, made: Make, photos: list[Path], tmp_path: Path
) -> None:
    preprocess = Preprocess.model_validate(PREPROCESSINGS[name])
    manifest = json.loads((made("digits").path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "preprocess": preprocess.model_dump(mode="json")}))
    for photo in photos[:2]:
        printed = subprocess.run([programs["planes"], tmp_path, photo], capture_output=True, check=True).stdout
        with Image.open(photo) as image:
            expected = to_pixels(image, preprocess)
        pixels = np.frombuffer(printed, np.uint8).reshape(expected.shape).astype(int)
        assert abs(pixels - expected).max() <= OFF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(
    orientation: int, programs: Programs, made: Make, photos: list[Path], tmp_path: Path
) -> None:
    preprocess = Preprocess(size=(60, 80), resize="letterbox")
    manifest = json.loads((made("digits").path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "preprocess": preprocess.model_dump(mode="json")}))
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", orientation
    with Image.open(photos[0]) as image:
        image.save(tmp_path / "turned.jpg", exif=exif)
    printed = subprocess.run([programs["planes"], tmp_path, tmp_path / "turned.jpg"], capture_output=True, check=True)
    with Image.open(tmp_path / "turned.jpg") as image:
        expected = to_pixels(image, preprocess)
    pixels = np.frombuffer(printed.stdout, np.uint8).reshape(expected.shape).astype(int)
    assert abs(pixels - expected).max() <= OFF


def test_a_damaged_image_is_named_and_the_others_are_answered(
    programs: Programs, made: Make, photos: list[Path], tmp_path: Path
) -> None:
    cut, text, deep = tmp_path / "cut.jpg", tmp_path / "text.png", tmp_path / "deep.png"
    cut.write_bytes(photos[0].read_bytes()[:4000])
    text.write_text("no picture")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep)
    missing = tmp_path / "missing.jpg"
    result = run(programs["run_onnxruntime"], made("digits").path, cut, text, deep, missing, photos[0])
    assert result.returncode == 1
    assert list(read_answers(result.stdout)) == [str(photos[0])]
    errors = result.stderr.splitlines()
    assert [line.partition(": ")[0] for line in errors] == [str(path) for path in (cut, text, deep, missing)]
    assert "damaged" in errors[0]
    assert "16 bits" in errors[2]
    assert "cannot be opened" in errors[3]


def test_what_it_cannot_run_is_refused_in_one_line(programs: Programs, made: Make, tmp_path: Path) -> None:
    program = programs["run_onnxruntime"]
    assert run(program).returncode == 2
    manifest = json.loads((made("digits").path / "manifest.json").read_text())
    usage = manifest["usage"]
    cases = {
        "cannot be opened": None,
        "is a bundle": {**manifest, "runs": None},
        "another task": {**manifest, "usage": {**usage, "post_processing": None}},
        "images only": {**manifest, "usage": {**usage, "inputs": usage["inputs"] * 2}},
    }
    for number, (message, changed) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if changed is not None:
            (folder / "manifest.json").write_text(json.dumps(changed))
        result = run(program, folder, "x.jpg")
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert message in result.stderr


def test_the_tensorrt_example_compiles() -> None:
    """Against stubs with the declarations of TensorRT and CUDA that it uses. It is not run."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    source, stubs = EXAMPLES / "cpp" / "tensorrt.cpp", Path(__file__).with_name("stubs")
    compiler = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-isystem", stubs, source]
    subprocess.run(compiler, check=True)
    assert "NOT RUN" in source.read_text()
