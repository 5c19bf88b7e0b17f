"""Datasets: every form, and every mistake in the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.dataset import Dataset, batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

PREPROCESS = Preprocess(size=(8, 8))
GREY = Preprocess(size=(8, 8), mean=(0.5,), std=(0.5,), channels=1)


def _open(path: Path, **options: object) -> Dataset:
    arguments = {"labels": None, "need_labels": True, "split": "evaluation", **options}
    return open_dataset(str(path), PREPROCESS, **arguments)  # type: ignore[arg-type]


def _fill(folder: Path, count: int, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (12, 10), (shade, index % 256, 0)).save(folder / f"{index:03}.png")


def _labels(dataset: Dataset) -> list[int | None]:
    return sorted(sample.label for sample in dataset if sample.label is not None)


def test_folders_in_their_own_order(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        _fill(tmp_path / name, 3)
    dataset = _open(tmp_path)
    assert (len(dataset), dataset.labelled, dataset.classes) == (6, True, ("cat", "dog"))
    assert _labels(dataset) == [0, 0, 0, 1, 1, 1]
    assert all(s.image.shape == (3, 8, 8) and s.image.dtype == np.uint8 for s in dataset)


def test_folders_by_the_models_labels(tmp_path: Path) -> None:
    _fill(tmp_path / "dog", 1)
    _fill(tmp_path / "ant", 1)
    assert _labels(_open(tmp_path, labels=("cat", "dog", "ant"))) == [1, 2]


def test_folders_by_number(tmp_path: Path) -> None:
    for name in ("2", "10"):
        _fill(tmp_path / name, 1)
    assert _labels(_open(tmp_path)) == [2, 10]
    with pytest.raises(DataError, match="class '10' has index 10, but the model has 3 classes"):
        _open(tmp_path, labels=("a", "b", "c"))


def test_loose_images_calibrate_but_do_not_evaluate(tmp_path: Path) -> None:
    _fill(tmp_path, 4)
    dataset = _open(tmp_path, need_labels=False)
    assert (len(dataset), dataset.labelled) == (4, False)
    assert all(sample.label is None for sample in dataset)
    with pytest.raises(DataError, match="has no labels"):
        _open(tmp_path)


def test_the_first_few_are_of_all_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _fill(tmp_path / name, 40)
    dataset = _open(tmp_path)
    first = next(batches(dataset, 20))[1]
    assert set(first) == {0, 1}
    assert first == next(batches(_open(tmp_path), 20))[1]


def test_one_damaged_image_is_skipped_and_counted(tmp_path: Path) -> None:
    _fill(tmp_path / "a", 5)
    (tmp_path / "a" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    dataset = _open(tmp_path)
    for _ in range(2):
        assert len(list(dataset)) == 4
        assert len(dataset.skipped) == 1
    assert "002.png" in dataset.skipped[0]


def test_more_damage_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path / "a", 5)
    for name in ("001", "002"):
        (tmp_path / "a" / f"{name}.png").write_text("no image")
    with pytest.raises(DataError, match="2 of 5 images cannot be read"):
        list(_open(tmp_path))


def test_the_digest_follows_content_not_place_or_time(tmp_path: Path) -> None:
    _fill(tmp_path / "one" / "a", 3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "a" / "000.png").touch()
    first, second = _open(tmp_path / "one"), _open(tmp_path / "two")
    assert first.digest == second.digest
    Image.new("RGB", (12, 10), (9, 9, 9)).save(tmp_path / "two" / "a" / "000.png")
    assert _open(tmp_path / "two").digest != first.digest
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "b")
    assert _open(tmp_path / "one").digest != first.digest


@pytest.mark.parametrize("name", ["missing", "missing.npz", "notes.txt"])
def test_what_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"Give a folder.*\.npz.*demo:digits"):
        _open(tmp_path / name)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    with pytest.raises(DataError, match="has no images"):
        _open(tmp_path)


def test_npz_of_the_models_size_is_used_as_is(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(5))
    crop = PREPROCESS.model_copy(update={"crop_pct": 0.5})
    dataset = open_dataset(str(tmp_path / "d.npz"), crop, labels=None, need_labels=True, split="evaluation")
    for sample in dataset:
        assert sample.label is not None
        np.testing.assert_array_equal(sample.image, images[sample.label].transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 1), (2, 8, 8, 3), (2, 20, 16), (2, 20, 16, 3)])
@pytest.mark.parametrize("preprocess", [PREPROCESS, GREY])
def test_npz_of_any_colour_feeds_any_model(tmp_path: Path, shape: tuple[int, ...], preprocess: Preprocess) -> None:
    np.savez(tmp_path / "d.npz", images=np.full(shape, 128, np.uint8), labels=np.zeros(2, np.int64))
    dataset = open_dataset(str(tmp_path / "d.npz"), preprocess, labels=None, need_labels=True, split="evaluation")
    images, labels = next(batches(dataset, 2))
    assert images.shape == (2, preprocess.channels, 8, 8)
    assert labels == [0, 0]
    assert np.abs(images.astype(int) - 128).max() <= 1  # Pillow's luma rounds


GOOD = np.zeros((3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GOOD.astype(np.float32), "labels": np.zeros(3, int)}, "float32"),
        ({"images": np.zeros((3, 4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "not uint8 NHWC"),
        ({"images": GOOD[:0], "labels": np.zeros(0, int)}, "no images"),
        ({"labels": np.zeros(3, int)}, "has no array `images`; its arrays: labels"),
        ({"images": GOOD, "labels": np.zeros(2, int)}, "not 3 integers"),
        ({"images": GOOD, "labels": np.zeros(3)}, "not 3 integers"),
        ({"images": GOOD, "labels": np.array([0, 1, 2])}, "the model has 2 classes"),
        ({"images": GOOD, "labels": np.array([0, -1, 1])}, "from -1"),
        ({"images": GOOD}, "has no labels"),
        ({"images": np.array([None, "x"], dtype=object)}, "pickled objects"),
    ],
)
def test_npz_that_does_not_serve(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        _open(tmp_path / "d.npz", labels=("a", "b"))


def test_a_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=GOOD)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"not an \.npz file, or it is truncated"):
        _open(tmp_path / "d.npz")


def test_demo_splits_do_not_meet() -> None:
    digits = Preprocess(size=(32, 32), mean=(0.5,), std=(0.5,), channels=1)
    splits = [
        open_dataset("demo:digits", digits, labels=None, need_labels=True, split=split)
        for split in ("calibration", "evaluation")
    ]
    assert [len(s) for s in splits] == [197, 600]
    assert splits[0].digest != splits[1].digest
    calibration, evaluation = ({s.image.tobytes() for s in split} for split in splits)
    assert len(calibration & evaluation) <= 1  # by chance: two writers, the same 64 pixels


def test_batches_stop_at_the_limit() -> None:
    digits = Preprocess(size=(32, 32), mean=(0.5,), std=(0.5,), channels=1)
    dataset = open_dataset("demo:digits", digits, labels=None, need_labels=True, split="evaluation")
    loaded = list(batches(dataset, 8, limit=20))
    assert [len(labels) for _, labels in loaded] == [8, 8, 4]
    assert loaded[0][0].shape == (8, 1, 32, 32)
    assert sum(len(labels) for _, labels in batches(dataset, 64)) == 600


def test_the_demo_is_as_accurate_as_its_weights_say() -> None:
    import torch

    from vitdeploy.recipe import ModelSpec
    from vitdeploy.sources import load

    model = load(ModelSpec(spec="demo:digits"))
    assert model.module is not None
    dataset = open_dataset("demo:digits", model.preprocess, labels=model.labels, need_labels=True, split="evaluation")
    with torch.inference_mode():
        right = sum(
            int((model.module(torch.tensor(normalize(pixels, model.preprocess))).argmax(1).numpy() == labels).sum())
            for pixels, labels in batches(dataset, 100)
        )
    assert right / len(dataset) > 0.97
