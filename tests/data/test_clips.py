"""Clips of frames: which frames they consist of, their folders and arrays, and every mistake in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from tests.clips import make_clip, make_clips
from vitdeploy.data.dataset import Dataset, batches
from vitdeploy.data.frames import choose_frames, find_clip_folders, list_frames
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input, to_pixels
from vitdeploy.data.synthetic import LOOKS, natural_image
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.recipe import Preprocess, parse

CLIPS = Preprocess(size=(8, 8), frames=4)


def _open(path: Path | str, **options: object) -> Dataset:
    arguments = {"labels": None, "need_labels": True, "split": "evaluation", **options}
    return open_dataset(str(path), CLIPS, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "frames"), [(4, 4), (5, 4), (11, 4), (300, 16), (33, 32), (7, 1)])
def test_frames_are_chosen_as_transformers_does(count: int, frames: int) -> None:
    theirs = default_sample_indices_fn(VideoMetadata(total_num_frames=count), num_frames=frames)
    assert choose_frames(count, frames) == list(theirs)


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip", 12)
    assert [path.name for path in list_frames(tmp_path / "clip", 12)] == [f"frame{n}.png" for n in range(1, 13)]
    assert [path.name for path in list_frames(tmp_path / "clip", 3)] == ["frame1.png", "frame5.png", "frame9.png"]


def test_a_folder_of_clips_per_class(tmp_path: Path) -> None:
    make_clips(tmp_path, classes=3, each=2)
    dataset = _open(tmp_path)
    assert (len(dataset), dataset.labelled, dataset.order) == (6, True, "indices")
    samples = {sample.name: sample for sample in dataset}
    assert sorted(samples) == [f"{label}/clip{number}" for label in range(3) for number in range(2)]
    assert all(int(name[0]) == sample.label for name, sample in samples.items())
    one = samples["2/clip1"].image
    assert (one.shape, one.dtype) == ((4, 3, 8, 8), np.uint8)
    for frame, number in zip(one, (1, 3, 6, 9), strict=True):
        np.testing.assert_array_equal(frame, to_pixels(Image.open(tmp_path / f"2/clip1/frame{number}.png"), CLIPS))
    (images, _), *_ = batches(dataset, 2)
    assert to_input(images, CLIPS, "normalized").shape == (2, 4, 3, 8, 8)


def test_clips_by_the_models_labels(tmp_path: Path) -> None:
    make_clip(tmp_path / "jump" / "a", 4)
    make_clip(tmp_path / "run" / "b", 4)
    assert sorted(s.label or 0 for s in _open(tmp_path, labels=("run", "sit", "jump"))) == [0, 2]
    with pytest.raises(DataError, match="jump"):
        _open(tmp_path, labels=("run", "sit"))


def test_clips_without_classes_calibrate_but_do_not_evaluate(tmp_path: Path) -> None:
    make_clip(tmp_path / "a", 5)
    make_clip(tmp_path / "b", 5)
    assert [s.label for s in _open(tmp_path, need_labels=False)] == [None, None]
    assert len(_open(tmp_path / "a", need_labels=False)) == 1
    with pytest.raises(DataError, match="has no labels") as error:
        _open(tmp_path)
    assert "Put the clips, each a folder of frames, into one sub-folder per class" in error.value.fix


def test_the_digest_covers_the_frames_that_are_chosen(tmp_path: Path) -> None:
    make_clip(tmp_path / "0" / "a", 8)
    before = _open(tmp_path).digest
    Image.new("RGB", (60, 48)).save(tmp_path / "0/a/frame2.png")
    assert _open(tmp_path).digest == before, "of eight frames, the odd ones are chosen"
    Image.new("RGB", (60, 48)).save(tmp_path / "0/a/frame3.png")
    assert _open(tmp_path).digest != before


def test_arrays_of_clips(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "c.npz", clips=clips, labels=np.array([2, 0, 1]))
    samples = {sample.label: sample.image for sample in _open(tmp_path / "c.npz")}
    np.testing.assert_array_equal(samples[2], clips[0][[0, 1, 3, 4]].transpose(0, 3, 1, 2))
    np.savez(tmp_path / "grey.npz", clips=clips[..., :1], labels=np.array([2, 0, 1]))
    (first, *_) = _open(tmp_path / "grey.npz")
    assert first.image.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "has no array `clips`; its arrays: images"),
        ({"clips": np.zeros((2, 8, 8, 3), np.uint8)}, "each clip has 8 frames|not uint8|has no labels"),
        ({"clips": np.zeros((2, 4, 8, 8, 3), np.float32)}, r"clips are float32 .*, not uint8 \(clips, frames"),
        ({"clips": np.zeros((2, 3, 8, 8, 3), np.uint8)}, "each clip has 3 frames, and the model takes clips of 4"),
        ({"clips": np.zeros((0, 4, 8, 8, 3), np.uint8)}, "has no clips in it"),
        ({"clips": np.zeros((2, 4, 8, 8, 3), np.uint8), "labels": np.zeros(3, int)}, "not 2 integers"),
    ],
)
def test_arrays_that_are_no_clips(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=message):
        _open(tmp_path / "c.npz")


def test_mistakes_in_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no folder with images in it"):
        _open(tmp_path / "empty")
    make_clip(tmp_path / "few" / "0" / "short", 3)
    with pytest.raises(DataError, match=r"few/0/short has 3 frames, and the model takes clips of 4") as error:
        _open(tmp_path / "few")
    assert "Give 4 frames or more" in error.value.fix
    with pytest.raises(DataError, match="single images, and the model takes clips of 4 frames"):
        _open("demo:digits")
    with pytest.raises(DataError, match="there is no"):
        _open(tmp_path / "nothing")
    with pytest.raises(DataError, match="needs labels as masks"):
        _open(tmp_path / "few", form="masks")
    make_clip(tmp_path / "bad" / "0" / "a", 4)
    make_clip(tmp_path / "bad" / "0" / "b", 4)
    for name in "ab":
        (tmp_path / f"bad/0/{name}/frame2.png").write_text("no image")
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        list(_open(tmp_path / "bad"))


def test_folders_and_globs_that_name_clips(tmp_path: Path) -> None:
    make_clips(tmp_path / "all", classes=2, each=2, frames=4)
    root = tmp_path / "all"
    assert find_clip_folders(root / "0/clip1", 4) == [root / "0/clip1"]
    assert find_clip_folders(root, 4) == [root / f"{label}/clip{n}" for label in range(2) for n in range(2)]
    assert find_clip_folders(str(root / "*/clip1"), 4) == [root / "0/clip1", root / "1/clip1"]
    for wrong, message in [
        ("0/clip1/frame1.png", "is one file, and the model takes clips of 4 frames"),
        ("9", "there is no folder"),
        ("*/clip7", "there is no folder"),
    ]:
        with pytest.raises(DataError, match=message):
            find_clip_folders(root / wrong, 4)
    (root / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="is a video") as error:
        find_clip_folders(root / "a.mp4", 4)
    assert "ffmpeg" in error.value.fix


def test_made_up_clips_move() -> None:
    clips = natural_image(0, CLIPS, 2, LOOKS[1])
    assert (clips.shape, clips.dtype) == ((2, 4, 3, 8, 8), np.uint8)
    assert all((clips[:, t] != clips[:, t + 1]).any() for t in range(3))
    np.testing.assert_array_equal(clips[0], natural_image(0, CLIPS, 1, LOOKS[1])[0])


def test_a_mask_of_the_padding_is_for_images() -> None:
    with pytest.raises(RecipeError, match="mask is for single images"):
        parse(Preprocess, {"size": (8, 8), "resize": "letterbox", "mask": True, "frames": 2}, where="test")
