"""Datasets opened by the name that users give them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from vitdeploy.data._arrays import ArrayDataset, open_npz
from vitdeploy.data._clips import CLIP_FORMS, open_clips
from vitdeploy.data._coco import open_boxes
from vitdeploy.data._coco_keypoints import open_keypoints
from vitdeploy.data._coco_masks import open_instances
from vitdeploy.data._dense import open_depth, open_masks
from vitdeploy.data._folder import open_folder
from vitdeploy.data._parquet import open_parquet
from vitdeploy.data._webdataset import open_shards
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.dataset import Dataset, Form, Split
from vitdeploy.data.example_inputs import FurtherInput
from vitdeploy.data.shard_files import PARQUET, SHARD_FORMS, find_shards
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Preprocess

_DEMO = "demo:digits"
_DEMO_SPLIT: dict[Split, str] = {"calibration": "calibration", "evaluation": "test"}
_FORMS: dict[Form, str] = {
    "classes": "Give a folder with one sub-folder per class, an .npz with images and labels, or demo:digits; or "
    f"{SHARD_FORMS}.",
    "masks": "Give a folder with images/ and masks/. Masks are PNGs of class indices, named as the images.",
    "depth": "Give a folder with images/ and depth/. Depth maps are .npy (metres) or 16-bit PNG, named as the images.",
    "boxes": "Give a folder with images/ and annotations.json in COCO's format.",
    "instances": "Give a folder with images/ and annotations.json in COCO's format, with masks.",
    "keypoints": "Give a folder with images/ and annotations.json in COCO's format, with one person's keypoints.",
}
_IMAGES = "images"
_LABELS: dict[Form, str] = {"masks": "masks", "depth": "depth", "boxes": "annotations.json"}


def open_dataset(
    spec: str,
    preprocess: Preprocess,
    *,
    labels: tuple[str, ...] | None,
    need_labels: bool,
    split: Split,
    form: Form = "classes",
    classes: int | None = None,
    inputs: Sequence[FurtherInput] = (),
    need_inputs: bool = False,
) -> Dataset:
    """Open the dataset that `spec` (DATA of the command line) names.

    Args:
        spec: a folder, an `.npz` file, shards (`.tar`, `.parquet`), or `demo:digits`.
        preprocess: the model's preprocessing. Arrays that are already of the model's size are not resized.
        labels: the model's class names. Folders are matched with them, and label indices are checked against them.
        need_labels: True if data without labels is an error.
        split: the part of `demo:digits` to open; other data has one part only.
        form: the form of the labels. If labels are not needed, any folder of images will do.
        classes: the number of the model's classes, if it is known.
        inputs: the inputs of the model beside the image. An `.npz` has their values.
        need_inputs: True if data without these is an error.

    Raises:
        DataError: the data is missing, empty, of another form, or has no labels although they are needed.
    """
    try:
        shards = find_shards(spec) if preprocess.frames is None and (form == "classes" or not need_labels) else None
        if shards is not None:
            open_files = open_parquet if shards[0].suffix.lower() == PARQUET else open_shards
            dataset: Dataset = open_files(spec, shards, preprocess, labels, classes, need_labels=need_labels)
        else:
            dataset = _open(spec, preprocess, labels, split, form if need_labels else "classes", classes, inputs)
    except (OSError, RecursionError) as error:  # a folder that may not be read, or thousands of folders in each other
        reason = error.strerror if isinstance(error, OSError) else "its folders are nested too deeply"
        raise DataError(f"{spec} cannot be read: {reason}", fix="Make the data readable.") from None
    if need_labels and not dataset.labelled:
        samples = "clips, each a folder of frames," if preprocess.frames else "images"
        raise DataError(
            f"{spec} has no labels",
            fix=f"Put the {samples} into one sub-folder per class, or add labels to the .npz or the shards.",
        )
    if need_inputs and (missing := [each.name for each in inputs if each.name not in dataset.further]):
        raise DataError(
            f"{spec} has no values of the input {missing[0]}, which the model takes beside the image",
            fix=f"Give an .npz with images, labels and {', '.join(missing)}: a value for each image.",
        )
    return dataset


def _open(
    spec: str,
    preprocess: Preprocess,
    labels: tuple[str, ...] | None,
    split: Split,
    form: Form,
    classes: int | None,
    inputs: Sequence[FurtherInput],
) -> Dataset:
    path = expand_home(spec)
    if preprocess.frames is not None:
        return _open_clips(spec, preprocess, labels, form, classes, inputs)
    if form != "classes":
        if not path.is_dir() or not (path / _IMAGES).is_dir():
            message = f"there is no {spec}" if not path.exists() else f"{spec} has no folder images/ in it"
            raise DataError(message, fix=_FORMS[form])
        if form == "boxes":
            return open_boxes(spec, path, preprocess, labels)
        if form == "keypoints":
            return open_keypoints(spec, path, preprocess)
        if form == "instances":
            return open_instances(spec, path, preprocess, labels)
        return (open_masks if form == "masks" else open_depth)(spec, path, preprocess)
    if comes_with_package(spec):
        with resources.as_file(resources.files("vitdeploy") / "assets" / "digits.npz") as file:
            arrays = read_npz(file, "Install vitdeploy again.")
        indices = arrays[_DEMO_SPLIT[split]]
        images, digits = arrays["images"][indices], arrays["labels"][indices]
        return ArrayDataset(spec, images, digits, preprocess, classes=tuple("0123456789"))
    if path.is_dir():
        path = path / _IMAGES if guess_form(spec) != "classes" else path  # masks are not images to calibrate with
        return open_folder(spec, path, preprocess, labels, classes)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(spec, path, preprocess, labels, inputs)
    hint = did_you_mean(spec, [_DEMO])
    message = f"there is no {spec}{hint}" if not path.exists() else f"{spec} is no folder, .npz or shard{hint}"
    raise DataError(message, fix=_FORMS["classes"])


def _open_clips(
    spec: str,
    preprocess: Preprocess,
    labels: tuple[str, ...] | None,
    form: Form,
    classes: int | None,
    inputs: Sequence[FurtherInput],
) -> Dataset:
    path = expand_home(spec)
    if form != "classes":
        raise DataError(
            f"{spec}: clips have a class each, and this task needs labels as {form}", fix="Choose another --task."
        )
    if path.is_dir():
        return open_clips(spec, path, preprocess, labels, classes)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(spec, path, preprocess, labels, inputs)
    if comes_with_package(spec):
        message = f"{spec} has single images, and the model takes clips of {preprocess.frames} frames"
    else:
        message = f"there is no {spec}" if not path.exists() else f"{spec} is neither a folder nor an .npz file"
    raise DataError(message, fix=CLIP_FORMS)


def comes_with_package(spec: str) -> bool:
    """Return True if DATA is a dataset that vitdeploy ships, and so is on every machine."""
    return spec == _DEMO


def guess_form(spec: str) -> Form:
    """Guess the form of the labels from the files beside `images/`; the first form wins if there are several."""
    path = expand_home(spec)
    forms = [form for form, name in _LABELS.items() if (path / _IMAGES).is_dir() and (path / name).exists()]
    return forms[0] if forms else "classes"
