"""Models of clips through all commands: exported, fused, quantized, evaluated, asked, timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitdeploy
from benchmarks.zoo.counting import count_attentions
from tests.cli.conftest import run
from tests.clips import CLASSES, FRAMES, MODELS, SIDE, make_clip, make_clips, save_model
from vitdeploy.data.frames import clip_pixels, open_frames
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import DataError
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets import find as find_target


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vivit-images"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_every_attention_is_fused(name: str, target: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / "model")
    artifact = vitdeploy.export(f"hf:{tmp_path / 'model'}", target=target, output=tmp_path / "out")
    expected = count_attentions(model, (SIDE, SIDE), FRAMES)
    attention = vitdeploy.inspect(artifact).attention
    assert (attention.sites, attention.fused) == (expected, expected), attention.unfused
    assert expected >= 2
    assert artifact.manifest.inputs[0].shape == (1, FRAMES, 3, SIDE, SIDE)


@pytest.mark.parametrize("input_form", ["normalized", "uint8"])
def test_an_artifact_of_clips_answers_clips(input_form: str, tmp_path: Path) -> None:
    """The class scores of a clip are PyTorch's, whatever form the clip is given in."""
    model = save_model("timesformer", tmp_path / "model")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: hf:{tmp_path / 'model'}\ntarget: {{kind: onnxruntime, batch: '1:2:4', input: {input_form}}}\n"
    )
    artifact = vitdeploy.export(recipe=recipe, output=tmp_path / "out")
    clips = make_clips(tmp_path / "clips", classes=3, each=1)
    folders = [clips / str(label) / "clip0" for label in range(3)]
    frames = [open_frames(folder, FRAMES) for folder in folders]
    pixels = np.stack([clip_pixels(clip, artifact.manifest.preprocess) for clip in frames])
    with torch.no_grad():
        logits = model(torch.from_numpy(normalize(pixels, artifact.manifest.preprocess))).logits
    expected = torch.softmax(logits, dim=1).numpy()
    arrays = [np.stack([np.asarray(frame) for frame in clip]) for clip in frames]
    with vitdeploy.load(artifact.path) as deployed:
        forms = [deployed.predict(clips), deployed.predict(folders), deployed.predict(arrays), deployed.predict(frames)]
        (one,) = deployed.predict(frames[0])
        assert one.image == "frames"
        for predictions in forms:
            actual = [[g.probability for g in sorted(p.top, key=lambda g: g.index)] for p in predictions]
            np.testing.assert_allclose(actual, expected, atol=1e-4)
        with pytest.raises(DataError, match="array has 2 frames, and the model takes clips of 4"):
            deployed.predict(arrays[0][:2])
        with pytest.raises(DataError, match="has 1 frame, and the model takes clips of 4"):
            deployed.predict(frames[0][0])
        with pytest.raises(DataError, match="is not an image"):
            deployed.predict(np.zeros((4, 8, 8), np.float32))


def test_int8_with_clips_and_what_follows(tmp_path: Path) -> None:
    save_model("videomae", tmp_path / "model")
    clips = make_clips(tmp_path / "clips")
    artifact = vitdeploy.export(
        f"hf:{tmp_path / 'model'}", target="openvino", precision="int8", calibration=str(clips), output=tmp_path / "out"
    )
    assert artifact.manifest.quantized is not None
    assert artifact.manifest.quantized.calibration.images == 2 * CLASSES
    share = vitdeploy.inspect(artifact).quantized
    assert share is not None
    assert share.weights_pct + next(iter(share.outside.values())) == pytest.approx(100, abs=0.5)
    assert "patch embedding" in next(iter(share.outside))
    evaluation = vitdeploy.evaluate(artifact, data=str(clips))
    assert (evaluation.n, evaluation.task) == (2 * CLASSES, "classification")
    usage = artifact.manifest.usage
    assert usage is not None
    assert usage.inputs[0].layout == "NTCHW"
    assert usage.inputs[0].meaning.startswith("RGB clips of 4 frames")
    assert usage.preprocessing[0].startswith("choose 4 frames evenly")


def test_the_command_line(tmp_path: Path) -> None:
    save_model("videomae", tmp_path / "model")
    vitdeploy.export(f"hf:{tmp_path / 'model'}", target="onnxruntime", output=tmp_path / "out")
    clips = make_clips(tmp_path / "clips", classes=2, each=1)
    make_clip(clips / "2" / "short", 3, seed=9)
    ended = run("predict", tmp_path / "out", clips, "--save", tmp_path / "saved")
    assert ended.code == 1
    assert "2/short has 3 frames, and the model takes clips of 4" in ended.err
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["clip0-2.png", "clip0.png"]
    with Image.open(tmp_path / "saved/clip0.png") as picture:
        assert picture.width > picture.height
    ended = run("predict", tmp_path / "out", clips / "2" / "short")
    assert ended.code == 1
    assert "Give 4 frames or more" in ended.err
    ended = run("predict", tmp_path / "out", clips / "0/clip0/frame1.png")
    assert "is one file, and the model takes clips of 4 frames" in ended.err
    ended = run("eval", tmp_path / "out", "--data", clips)
    assert ended.code == 1
    assert "short has 3 frames" in ended.err


@pytest.mark.skipif(find_target(TargetSpec(kind="tensorrt-rtx")).unavailable() is not None, reason="no TensorRT-RTX")
def test_divided_attention_compiles_for_tensorrt_rtx(tmp_path: Path) -> None:
    model = save_model("timesformer", tmp_path / "model")
    artifact = vitdeploy.export(f"hf:{tmp_path / 'model'}", target="tensorrt-rtx", output=tmp_path / "out")
    assert artifact.manifest.stage == "artifact"
    attention = vitdeploy.inspect(artifact).attention
    assert attention.sites == count_attentions(model, (SIDE, SIDE), FRAMES) == 4
