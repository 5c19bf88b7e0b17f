"""`predict` on folders, globs, videos and damaged images, and the pictures that it saves, for every task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Ended, listing, run

pytestmark = pytest.mark.usefixtures("here")


def names(ended: Ended) -> list[str]:
    assert ended.code == 0, ended.err
    return [Path(one["image"]).name for one in json.loads(ended.out)["predictions"]]


def test_a_folder_and_a_glob(onnxruntime_fp32: Path, images: Callable[..., Path]) -> None:
    root = images(11)
    expected = [f"{number}.png" for number in range(11)]
    assert names(run("predict", onnxruntime_fp32, root, "--json")) == expected
    assert names(run("predict", onnxruntime_fp32, f"{root.parent}/**/*.png", "--json")) == expected
    ended = run("predict", onnxruntime_fp32, root / "1*.png", root / "2.png", "--json")
    assert names(ended) == ["1.png", "10.png", "2.png"]
    assert ended.err == ""
    assert json.loads(ended.out)["failed"] == []


def test_many_images_show_progress(onnxruntime_fp32: Path, images: Callable[..., Path]) -> None:
    ended = run("predict", onnxruntime_fp32, images(101), "--json")
    assert len(names(ended)) == 101
    assert "Answer 101 images" in ended.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.mp4", "ffmpeg -i clip.mp4 frames/%05d.png"),
        ("empty", "empty has no images in it"),
        ("*.gif", "no image matches *.gif"),
    ],
)
def test_what_names_no_image_is_refused_before_the_model_is_loaded(name: str, message: str) -> None:
    Path("clip.mp4").write_bytes(b"\0" * 100)
    Path("empty").mkdir()
    ended = run("predict", "no-artifact", name)
    assert ended.code == 1
    assert message in ended.error


def test_a_damaged_image_is_named_and_the_others_are_answered(
    onnxruntime_fp32: Path, images: Callable[..., Path]
) -> None:
    root = images(5)
    (root / "1.png").write_text("no image")
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:60])
    ended = run("predict", onnxruntime_fp32, root, "--json", "--save", "out")
    assert ended.code == 1
    said = json.loads(ended.out)
    assert [Path(one["image"]).name for one in said["predictions"]] == ["0.png", "2.png", "4.png"]
    assert [Path(one["image"]).name for one in said["failed"]] == ["1.png", "3.png"]
    assert said["error"]["message"] == "2 of 5 images have no answer" in ended.error
    assert "note: " + said["failed"][0]["message"] in ended.err
    assert listing(Path("out")) == ["0.png", "2.png", "4.png"]
    text = run("predict", onnxruntime_fp32, root)
    assert text.code == 1
    assert "4.png" in text.out
    assert "2 of 5 images" in text.error


def test_a_long_path_is_printed_on_one_line(
    onnxruntime_fp32: Path, images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = images(1) / "0.png"
    assert len(str(path)) > 40
    assert str(path) in run("predict", onnxruntime_fp32, path).out.splitlines()


def test_all_images_damaged_is_one_error(onnxruntime_fp32: Path) -> None:
    for name in ("a.png", "b.png"):
        Path(name).write_text("no image")
    ended = run("predict", onnxruntime_fp32, "a.png", "b.png", "--json")
    assert ended.code == 1
    assert json.loads(ended.out).keys() == {"error"}
    assert "none of 2 images has an answer. The first: a.png is not an image" in ended.error


def test_the_place_for_pictures_is_checked_before_anything_is_written(
    onnxruntime_fp32: Path, images: Callable[..., Path]
) -> None:
    root = images(2)
    before = {path: path.read_bytes() for path in root.iterdir()}
    assert "would replace the image" in run("predict", onnxruntime_fp32, root, "--save", root).error
    assert "is in an artifact" in run("predict", onnxruntime_fp32, root, "--save", onnxruntime_fp32 / "x").error
    Path("file").touch()
    assert "it is a file" in run("predict", onnxruntime_fp32, root, "--save", "file").error
    assert {path: path.read_bytes() for path in root.iterdir()} == before
    assert not (onnxruntime_fp32 / "x").exists()


def test_the_same_images_give_the_same_pictures_again(onnxruntime_fp32: Path, images: Callable[..., Path]) -> None:
    root = images(2)
    (root / "deep").mkdir()
    Image.new("L", (9, 9)).save(root / "deep" / "0.png")
    first = json.loads(run("predict", onnxruntime_fp32, root, "--save", "out", "--json").out)["predictions"]
    before = {name: Path("out", name).read_bytes() for name in listing(Path("out"))}
    assert [Path(one["saved"]).name for one in first] == ["0.png", "1.png", "0-2.png"]
    assert run("predict", onnxruntime_fp32, root, "--save", "out").code == 0
    assert {name: Path("out", name).read_bytes() for name in listing(Path("out"))} == before


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segformer", "dpt", "yolos"])
def test_a_picture_of_each_task(task: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests import scenes
    from tests.tasks import models

    data = scenes.write(tmp_path / "data", 3) / "images"
    Image.open(data / "0000.png").convert("L").rotate(90, expand=True).save(data / "0003.png")
    done = run("export", f"hf:{models.FIXTURES / task}", "--target", "onnxruntime", "--batch", "1:2:4", "-o", "model")
    assert done.code == 0, done.err
    said = json.loads(run("predict", "model", data, "--save", "out", "--json").out)["predictions"]
    assert [Path(one["saved"]).name for one in said] == [f"000{number}.png" for number in range(4)]
    for number, one in enumerate(said):
        with Image.open(data / f"000{number}.png") as before, Image.open(one["saved"]) as after:
            assert after.mode == "RGB"
            factor = after.width // before.width
            assert after.size == (factor * before.width, factor * before.height)
            plain = before.convert("RGB").resize(after.size, Image.Resampling.BICUBIC)
            changed = (np.asarray(plain) != np.asarray(after)).any(axis=2).mean()
        assert changed > (0.01 if task == "yolos" else 0.9)


@pytest.mark.slow
def test_vectors_are_saved_as_arrays(tmp_path: Path, images: Callable[..., Path]) -> None:
    pytest.importorskip("timm")
    from tests.tasks import models

    recipe = tmp_path / "recipe.yaml"
    model = {"spec": "timm:vit_tiny_patch16_224", "weights": "random", "kwargs": models.VIT}
    recipe.write_text(json.dumps({"model": model, "target": {"kind": "onnxruntime"}, "task": {"kind": "embedding"}}))
    done = run("export", model["spec"], "--recipe", recipe, "-o", "model")
    assert done.code == 0, done.err
    said = json.loads(run("predict", "model", images(2), "--save", "out", "--json").out)["predictions"]
    assert listing(Path("out")) == ["0.npy", "1.npy"]
    for one in said:
        np.testing.assert_allclose(np.load(one["saved"]), one["embedding"], rtol=1e-6)
