"""Open a dataset by the name that users give it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vitdeploy.data._arrays import ArrayDataset, open_npz, read_npz
from vitdeploy.data._coco import open_boxes
from vitdeploy.data._dense import open_depth, open_masks
from vitdeploy.data._folder import open_folder
from vitdeploy.data.dataset import Dataset, Form, Split
from vitdeploy.errors import DataError
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Preprocess

_DEMO = "demo:digits"
_DEMO_SPLIT: dict[Split, str] = {"calibration": "calibration", "evaluation": "test"}
_FORMS: dict[Form, str] = {
    "classes": "Give a folder with one sub-folder per class, an .npz with images and labels, or demo:digits.",
    "masks": "Give a folder with images/ and, by the same names, masks/ of class indices (PNG).",
    "depth": "Give a folder with images/ and, by the same names, depth/ (.npy in metres, or 16-bit PNG).",
    "boxes": "Give a folder with images/ and annotations.json in COCO's form.",
}
_IMAGES = "images"
_BESIDE: dict[Form, str] = {"masks": "masks", "depth": "depth", "boxes": "annotations.json"}


def open_dataset(
    spec: str,
    preprocess: Preprocess,
    *,
    labels: tuple[str, ...] | None,
    need_labels: bool,
    split: Split,
    form: Form = "classes",
) -> Dataset:
    """The dataset that `spec` (DATA of the command line) names.

    Args:
        spec: a folder, an `.npz` file, or `demo:digits`.
        preprocess: what the model wants; its size is given to every image, unless an array is of that size already.
        labels: the model's class names; folders are matched with them, and label indices checked against them.
        need_labels: whether data without labels is an error.
        split: which part of `demo:digits`; other data has one part.
        form: of the labels; without a need for them, any folder of images serves.

    Raises:
        DataError: the data is missing, empty, of another form, or has no labels where they are needed.
    """
    dataset = _opened(spec, preprocess, labels, split, form if need_labels else "classes")
    if need_labels and not dataset.labelled:
        raise DataError(
            f"{spec} has no labels", fix="Put the images into one sub-folder per class, or add labels to the .npz."
        )
    return dataset


def _opened(spec: str, preprocess: Preprocess, labels: tuple[str, ...] | None, split: Split, form: Form) -> Dataset:
    path = Path(spec).expanduser()
    if form != "classes":
        if not path.is_dir() or not (path / _IMAGES).is_dir():
            what = f"there is no {spec}" if not path.exists() else f"{spec} has no folder images/ in it"
            raise DataError(what, fix=_FORMS[form])
        if form == "boxes":
            return open_boxes(spec, path, preprocess, labels)
        return (open_masks if form == "masks" else open_depth)(spec, path, preprocess)
    if comes_with_package(spec):
        with resources.as_file(resources.files("vitdeploy") / "assets" / "digits.npz") as file:
            arrays = read_npz(file)
        chosen = arrays[_DEMO_SPLIT[split]]
        images, truth = arrays["images"][chosen], arrays["labels"][chosen]
        return ArrayDataset(spec, images, truth, preprocess, classes=tuple("0123456789"))
    if path.is_dir():
        path = path / _IMAGES if form_of(spec) != "classes" else path  # to calibrate, masks are no images
        return open_folder(spec, path, preprocess, labels)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(spec, path, preprocess, labels)
    what = "there is no" if not path.exists() else "it is no dataset:"
    raise DataError(f"{what} {spec}{did_you_mean(spec, [_DEMO])}", fix=_FORMS["classes"])


def comes_with_package(spec: str) -> bool:
    """Return whether DATA is a dataset that vitdeploy ships, and so is on every machine."""
    return spec == _DEMO


def form_of(spec: str) -> Form:
    """The form that labels seem to have; of a folder with several, the first."""
    path = Path(spec).expanduser()
    found = [form for form, name in _BESIDE.items() if (path / _IMAGES).is_dir() and (path / name).exists()]
    return found[0] if found else "classes"
