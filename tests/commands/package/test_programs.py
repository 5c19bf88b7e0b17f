"""The programs that a package brings for Triton's Python backend: their answers are those of `predict`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands.package.conftest import Run
from tests.examples.conftest import DETECTORS
from tests.examples.preprocessings import PREPROCESSINGS
from vitdeploy.artifact import Artifact
from vitdeploy.commands.package import package
from vitdeploy.commands.predict import Deployed
from vitdeploy.data.preprocess import to_input, to_pixels
from vitdeploy.recipe import Preprocess
from vitdeploy.runtime.artifact_session import open_session

Made = Callable[..., Artifact]
Load = Callable[[Path], Run]
CLOSE = 1e-5


def serve(artifact: Artifact, out: Path, program: Load) -> tuple[Run, Run, Run]:
    """The programs of a package in the order of the ensemble."""
    package(artifact, "triton", out, {"backend": "python", "ensemble": True, "name": "m"})
    prepare, engine, decode = (program(out / name / "1") for name in ("m-prepare", "m", "m-decode"))
    return prepare, engine, decode


def check_answers(artifact: Artifact, photos: list[Path], programs: tuple[Run, Run, Run]) -> None:
    """One request for each photo gives what `predict` answers."""
    prepare, engine, decode = programs
    (image,), reading = artifact.manifest.inputs, artifact.manifest.usage.post_processing
    with Deployed(artifact.path) as deployed:
        expected = deployed.predict([str(photo) for photo in photos])
    assert any(prediction.top or prediction.boxes for prediction in expected)
    for photo, prediction in zip(photos, expected, strict=True):
        (prepared,) = prepare({"IMAGE": np.array([photo.read_bytes()], np.object_)})
        (outputs,) = engine({image.name: prepared[image.name]})
        fed = {"SCORES": outputs[reading.scores]}
        if reading.boxes:
            fed |= {"BOXES": outputs[reading.boxes], "IMAGE_SIZE": prepared["IMAGE_SIZE"]}
        (answers,) = decode(fed)
        rows = [[g.probability, g.index, g.label] for g in prediction.top]
        rows += [[b.score, b.index, b.label, *b.box] for b in prediction.boxes]
        there = answers["CLASS"][0] >= 0
        assert list(answers["CLASS"][0][there]) == [row[1] for row in rows]
        assert [name.decode() for name in answers["LABEL"][0][there]] == [row[2] for row in rows]
        np.testing.assert_allclose(answers["PROBABILITY"][0][there], [row[0] for row in rows], atol=CLOSE)
        if reading.boxes:
            np.testing.assert_allclose(
                answers["BOX"][0][there].reshape(-1, 4), [r[3:] for r in rows] or np.empty((0, 4)), atol=0.01
            )


@pytest.mark.parametrize("name", ["classifier", "digits", *DETECTORS])
def test_the_answers_are_those_of_predict(
    name: str, made: Made, photos: list[Path], program: Load, tmp_path: Path
) -> None:
    artifact = made(name)
    check_answers(artifact, photos, serve(artifact, tmp_path / "out", program))


def test_openvinos_answers_are_those_of_predict(made: Made, photos: list[Path], program: Load, tmp_path: Path) -> None:
    artifact = made("digits", target="openvino")
    check_answers(artifact, photos[:2], serve(artifact, tmp_path / "out", program))
    settings = json.loads((tmp_path / "out/m/1/settings.json").read_text())
    assert settings["properties"]["INFERENCE_PRECISION_HINT"] == "f32", "as load opens it, not as the CPU likes it"


@pytest.mark.parametrize("form", ["pixels", "uint8"])
def test_it_feeds_what_the_artifact_takes(
    form: str, made: Made, photos: list[Path], program: Load, tmp_path: Path
) -> None:
    artifact = made("classifier", input_form=form)
    check_answers(artifact, photos[:2], serve(artifact, tmp_path / "out", program))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_joined_requests_get_their_own_answers(
    target: str, demo: Callable[..., Artifact], program: Load, tmp_path: Path
) -> None:
    artifact = demo(target=target, batch="1:2:4")
    _, engine, _ = serve(artifact, tmp_path / "out", program)
    feeds = [np.random.default_rng(n).standard_normal((n, 1, 32, 32)).astype(np.float32) for n in (1, 2, 1)]
    answers = engine(*({"input": feed} for feed in feeds))
    with open_session(artifact, None) as session:
        for feed, answer in zip(feeds, answers, strict=True):
            np.testing.assert_allclose(answer["output"], session.run({"input": feed})["output"], atol=1e-5)


def test_a_request_that_fails_says_why(made: Made, program: Load, photos: list[Path], tmp_path: Path) -> None:
    prepare, engine, _ = serve(made("digits"), tmp_path / "out", program)
    damaged = {"IMAGE": np.array([b"no picture"], np.object_)}
    message, prepared = prepare(damaged, {"IMAGE": np.array([photos[0].read_bytes()], np.object_)})
    assert "an image cannot be decoded" in message
    message, prepared = prepare(
        {"IMAGE": np.array([], np.object_)}, {"IMAGE": np.array([photos[0].read_bytes()], np.object_)}
    )
    assert "an image cannot be prepared" in message
    wrong = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    message, answer = engine(wrong, {"input": prepared["input"]})
    assert "the engine refuses the request" in message
    assert answer["output"].shape == (1, 10)


@pytest.mark.parametrize("name", PREPROCESSINGS)
@pytest.mark.parametrize("form", ["normalized", "uint8"])
def test_inputs_are_vitdeploys_to_the_bit(
    name: str, form: Any, made: Made, photos: list[Path], program: Load, tmp_path: Path
) -> None:
    preprocess = Preprocess.model_validate(PREPROCESSINGS[name])
    prepare = with_preprocess(made("digits"), preprocess, form, program, tmp_path)
    for photo in photos[:2]:
        with Image.open(photo) as image:
            expected = to_input(to_pixels(image, preprocess), preprocess, form)
        (prepared,) = prepare({"IMAGE": np.array([photo.read_bytes()], np.object_)})
        np.testing.assert_array_equal(prepared["input"][0], expected)


def rotated() -> Image.Image:
    image = Image.fromarray(np.arange(30 * 50 * 3, dtype=np.uint8).reshape(30, 50, 3))
    image.getexif()[0x0112] = 6  # turn it right
    return image


PICTURES = {
    "turned": rotated(),
    "16 bits": Image.fromarray((np.arange(40 * 40, dtype=np.uint16) * 40).reshape(40, 40)),
    "grey": Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)),
    "transparent palette": Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).convert("P"),
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_is_decoded_as_vitdeploy_does(
    picture: str, channels: int, made: Made, program: Load, tmp_path: Path
) -> None:
    content = io.BytesIO()
    image = PICTURES[picture]
    image.save(content, "PNG", **({"transparency": 3} if image.mode == "P" else {"exif": image.getexif()}))
    preprocess = Preprocess(size=(24, 40), mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)
    for antialias in (True, False):
        changed = preprocess.model_copy(update={"antialias": antialias})
        prepare = with_preprocess(made("digits"), changed, "uint8", program, tmp_path / str(antialias))
        with Image.open(io.BytesIO(content.getvalue())) as opened:
            expected = to_pixels(opened, changed)
        (prepared,) = prepare({"IMAGE": np.array([content.getvalue()], np.object_)})
        np.testing.assert_array_equal(prepared["input"][0], expected)


def with_preprocess(artifact: Artifact, preprocess: Preprocess, form: str, program: Load, folder: Path) -> Run:
    """The program that prepares images, told to prepare them for another model."""
    package(artifact, "triton", folder / "out", {"ensemble": True, "name": "m"})
    path = folder / "out/m-prepare/1/settings.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "preprocess": preprocess.model_dump(mode="json"), "form": form}))
    return program(path.parent)


def test_boxes_that_are_not_there_are_marked(made: Made, program: Load, tmp_path: Path) -> None:
    """All scores far below the threshold: as many rows as ever, all of class -1."""
    artifact = made("yolos")
    _, _, decode = serve(artifact, tmp_path / "out", program)
    shapes = {output.name: [1, *output.shape[1:]] for output in artifact.manifest.outputs}
    reading = SimpleNamespace(**artifact.manifest.usage.post_processing.model_dump())
    scores = np.full(shapes[reading.scores], -20, np.float32)
    scores[..., reading.no_object if reading.no_object is not None else 0] = 20
    size = np.array([[100, 200]], np.int32)
    (answer,) = decode({"SCORES": scores, "BOXES": np.full(shapes[reading.boxes], 0.5, np.float32), "IMAGE_SIZE": size})
    assert reading.threshold > 0
    assert (answer["CLASS"] == -1).all()
    assert set(answer["LABEL"][0]) == {b""}
    assert answer["BOX"].shape == (1, answer["CLASS"].shape[1], 4)
