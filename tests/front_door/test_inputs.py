"""Inputs beside the image that stay open, through all commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitdeploy
from tests.cli.conftest import run
from tests.further_inputs import CLASSES, SIDE, SPEC, conditioned, save_data, save_examples, stereo
from vitdeploy.artifact import Artifact
from vitdeploy.data.preprocess import apply
from vitdeploy.errors import DataError
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets import find as find_target


def _export(folder: Path, **options: object) -> Artifact:
    arguments = {"target": "onnxruntime", "examples": save_examples(folder), "output": folder / "out", **options}
    return vitdeploy.export(SPEC, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "input_form"), [("onnxruntime", "normalized"), ("onnxruntime", "uint8"), ("openvino", "normalized")]
)
def test_open_inputs_are_inputs_of_the_artifact(target: str, input_form: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {SPEC}\ntarget: {{kind: {target}, batch: '1:2:4', input: {input_form}}}\n")
    artifact = _export(tmp_path, recipe=recipe, target=None)
    manifest = artifact.manifest
    assert [(spec.name, spec.shape[1:]) for spec in manifest.inputs] == [
        ("input", (3, SIDE, SIDE)), ("point", (2,)), ("camera", ()),
    ]  # fmt: skip
    assert manifest.inputs[2].dtype == "int64"
    assert manifest.device_parity is not None
    assert manifest.device_parity.max_abs < 1e-4
    assert set(manifest.device_parity.batches) == {1, 2, 4}
    assert manifest.usage is not None
    assert [tensor.name for tensor in manifest.usage.inputs] == ["input", "point", "camera"]
    assert "a value for each image" in manifest.usage.inputs[1].meaning
    pictures = [Image.effect_noise((SIDE, SIDE), 50 + 20 * number).convert("RGB") for number in range(3)]
    point, camera = np.array([[0.5, -1], [2, 0], [0, 3]], np.float32), np.array([4, 0, 2])
    pixels = np.stack([apply(picture, manifest.preprocess) for picture in pictures])
    with torch.no_grad():
        logits = conditioned()(torch.from_numpy(pixels), torch.from_numpy(point), torch.from_numpy(camera))
    with vitdeploy.load(artifact.path) as model:
        answers = model.predict(pictures, inputs={"point": point, "camera": camera})
        one = model.predict(pictures, inputs={"point": [0.5, -1], "camera": 4})
        with pytest.raises(DataError, match=r"takes camera \(int64, \[\]\) beside the image, which is not given"):
            model.predict(pictures, inputs={"point": point})
    actual = [[guess.probability for guess in sorted(a.top, key=lambda g: g.index)] for a in answers]
    np.testing.assert_allclose(actual, torch.softmax(logits, dim=1), atol=1e-4)
    assert one[0] == answers[0]
    assert one[1] != answers[1]


def test_int8_eval_bench_and_debug_feed_them(tmp_path: Path) -> None:
    data = save_data(tmp_path / "data.npz")
    artifact = _export(tmp_path, target="openvino", precision="int8", calibration=str(data))
    assert artifact.manifest.quantized is not None
    evaluation = vitdeploy.evaluate(artifact, data=str(data))
    assert evaluation.n == 20
    assert evaluation.repeated == 0
    arrays = dict(np.load(data))
    arrays["images"][:] = arrays["images"][:1]  # all images are one: only the other inputs tell samples apart
    np.savez(tmp_path / "same.npz", **arrays)
    assert vitdeploy.evaluate(artifact, data=str(tmp_path / "same.npz")).repeated == 0
    arrays.pop("camera")
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(DataError, match=r"less\.npz has no values of the input camera") as error:
        vitdeploy.evaluate(artifact, data=str(tmp_path / "less.npz"))
    assert "an .npz with images, labels and camera" in error.value.fix
    np.savez(tmp_path / "few.npz", **arrays, camera=np.zeros(3, int))
    with pytest.raises(DataError, match=r"the values of the input camera are \[3\], and 20 samples need \[20\]"):
        vitdeploy.evaluate(artifact, data=str(tmp_path / "few.npz"))
    ended = run("debug", artifact.path, "--data", data, "--images", 4, "--model", SPEC, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["blocks"]
    bench = vitdeploy.bench(artifact, seconds=0.5)
    assert {one.role for one in bench.runs} == {"reference", "artifact"}


def test_the_stored_examples_serve_when_the_users_files_have_gone(tmp_path: Path) -> None:
    artifact = _export(tmp_path)
    for name in ("point.npz", "camera.npz"):
        (tmp_path / name).unlink()
    evaluation = vitdeploy.evaluate(artifact, data=str(save_data(tmp_path / "data.npz")))
    assert evaluation.n == 20


def test_the_command_line(tmp_path: Path) -> None:
    examples = [f"--examples={name}={file}" for name, file in save_examples(tmp_path).items()]
    out = tmp_path / "out"
    ended = run("export", SPEC, "--target", "onnxruntime", "-o", out, examples[0])
    assert ended.code == 1
    assert "needs camera beside the image 'image', which is not given" in ended.err
    assert "--bind camera=VALUE" in ended.err
    assert "--examples camera=FILE.npz" in ended.err
    assert not out.exists()
    ended = run("export", SPEC, "--target", "onnxruntime", "-o", out, *examples)
    assert ended.code == 0, ended.err
    Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(tmp_path / "a.png")
    given = ["predict", out, tmp_path / "a.png", "--json"]
    ended = run(*given, "--input", "point=0.5,1", "--input", "camera=3")
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["predictions"][0]["top"]) == CLASSES
    ended = run(*given, "--input", f"point={tmp_path / 'point.npz'}", "--input", "camera=3")
    assert "have the shape [7, 2], and 1 image need [2] for all, or [1, 2]" in ended.err
    for wrong, message in [
        (["point=0.5,1"], "takes camera (int64, []) beside the image, which is not given"),
        (["point=0.5,1", "camera=1", "camra=1"], "no input 'camra' (did you mean 'camera'?)"),
        (["point=0.5,1", "camera=1.5"], "float32, and the input takes int64"),
        (["point=x.txt", "camera=1"], "neither numbers nor a file .npz"),
        (["point"], "--input 'point' is not NAME=VALUE"),
    ]:
        ended = run(*given, *(f"--input={text}" for text in wrong))
        assert ended.code == 1
        assert message in ended.err


def test_a_second_image_is_prepared_as_the_first(tmp_path: Path) -> None:
    """`left` and `right` are files for predict, and uint8 for eval: the answers are PyTorch's on prepared images."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "right.npz", rng.standard_normal((3, 3, SIDE, SIDE)))
    spec = "python:tests.further_inputs:stereo"
    artifact = vitdeploy.export(
        spec, target="onnxruntime", examples={"right": str(tmp_path / "right.npz")}, output=tmp_path / "out"
    )
    pictures = [Image.fromarray(rng.integers(0, 256, (48, 40, 3), np.uint8)) for _ in range(4)]
    for side, two in (("left", pictures[:2]), ("right", pictures[2:])):
        (tmp_path / side).mkdir()
        for number, picture in enumerate(two):
            picture.save(tmp_path / side / f"{number}.png")
    pixels = torch.from_numpy(np.stack([apply(picture, artifact.manifest.preprocess) for picture in pictures]))
    with torch.no_grad():
        expected = torch.softmax(stereo()(left=pixels[:2], right=pixels[2:]), dim=1).numpy()
    ended = run("predict", artifact.path, tmp_path / "left", "--input", f"right={tmp_path / 'right'}", "--json")
    assert ended.code == 0, ended.err
    answers = [sorted(one["top"], key=lambda guess: guess["index"]) for one in json.loads(ended.out)["predictions"]]
    np.testing.assert_allclose([[g["probability"] for g in answer] for answer in answers], expected, atol=1e-4)
    ended = run("predict", artifact.path, tmp_path / "left", "--input", f"right={tmp_path / 'none.png'}")
    assert "there is no image" in ended.err
    (tmp_path / "right" / "2.png").write_bytes((tmp_path / "right" / "1.png").read_bytes())
    ended = run("predict", artifact.path, tmp_path / "left", "--input", f"right={tmp_path / 'right'}")
    assert "has 3 images, for 2 to answer" in ended.err
    left, right = (np.stack([np.asarray(p) for p in two]) for two in (pictures[:2], pictures[2:]))
    labels = expected.argmax(axis=1)
    np.savez(tmp_path / "data.npz", images=left, right=right, labels=labels)
    assert vitdeploy.evaluate(artifact, data=str(tmp_path / "data.npz")).metrics["top1"].deployed == 100


@pytest.mark.skipif(find_target(TargetSpec(kind="tensorrt-rtx")).unavailable() is not None, reason="no TensorRT-RTX")
def test_tensorrt_rtx_compiles_with_a_profile_for_each_input(tmp_path: Path) -> None:
    artifact = _export(tmp_path, target="tensorrt-rtx", batch="1:2:4")
    assert artifact.manifest.stage == "artifact"
    assert vitdeploy.inspect(artifact).attention.sites == 2
