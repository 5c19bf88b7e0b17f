"""Images with objects: `images/` beside `annotations.json` in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vitdeploy.data._folder import FolderDataset, check_any
from vitdeploy.data.class_names import are_made_up, match
from vitdeploy.data.dataset import Order
from vitdeploy.data.geometry import visible_area
from vitdeploy.data.labels import Boxes, Label
from vitdeploy.data.preprocess import upright_size
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_JSON_BYTES
from vitdeploy.plain_files import read_plain
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

_FILE = "annotations.json"
_FIX = "COCO's format is: images (id, file_name), annotations (image_id, category_id, bbox), categories (id, name)."

_RENAME = "Rename the category after the model's label. If the model has other labels, export it with --labels FILE."
_SHARES_FIX = "Multiply x and width by the width of the image, y and height by its height."
_CORNERS_FIX = "Write a box as left, top, width and height in pixels, and cut off what is outside of the image."
_MAX_BEYOND = 2  # pixels, for tools that round
_TURNED_FIX = (
    "Write size and annotations of the image as its EXIF data turns it, or remove the rotation from that data."
)
_SIZE_FIX = "Give the images that were annotated, or scale the annotations with them and write the new size."
_MAX_CLASS = 1 << 31

Source = TypeVar("Source")
"""An annotation before its image is opened. Its text takes part in the digest of the data."""

Size = tuple[int, int]
"""Height and width in pixels."""

_Box = tuple[float, float, float, float, int, bool]
"""Left, top, width, height in pixels, class, crowd."""


def open_boxes(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None
) -> FolderDataset[tuple[str, tuple[_Box, ...]]]:
    """Open the images that the file lists, with their boxes; see `open_annotated`."""
    make_label = partial(_boxes_in_view, preprocess=preprocess)
    return open_annotated(spec, root, preprocess, names, _parse_box, make_label, _check_boxes)


def open_annotated(
    spec: str,
    root: Path,
    preprocess: Preprocess,
    names: tuple[str, ...] | None,
    parse: Callable[[Path, Mapping[str, Any], int], Source],
    make_label: Callable[[Path, Image, tuple[str, tuple[Source, ...]]], Label],
    check: Callable[[Path, Sequence[tuple[Size | None, Sequence[Source]]]], None],
) -> FolderDataset[tuple[str, tuple[Source, ...]]]:
    """Open the images that the file lists. An image may have no objects.

    If the model has class `names`, each category with objects must have the name of one (see `ClassNames`). Without
    names a category's class is its id.

    Args:
        spec: DATA as the user wrote it.
        root: the folder.
        preprocess: the model's preprocessing.
        names: the model's class names.
        parse: reads an annotation; its other arguments are the file, for messages, and the class.
        make_label: makes a label from an image's path, the opened image, and its name with what `parse` read.
        check: raises a DataError if the file, for messages, has places that cannot be right. It gets the size of each
            image as the file gives it, or None, and what `parse` read.

    Raises:
        DataError: the file is missing, is not in COCO's format, lists an image that does not exist, has a category that
            the model does not have, or `check` raises it. Reading an image whose size is not the one in the file
            raises it too.
    """
    path = root / _FILE
    content = _read(path)
    try:
        order, indices = _class_indices(path, content, names)
        objects: dict[Any, list[Source]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            kind = indices[int(annotation["category_id"])]
            objects[annotation["image_id"]].append(parse(path, annotation, kind))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        sizes = {str(image["file_name"]): _read_size(image) for image in content["images"]}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is not in COCO's format: {type(error).__name__} {error}", fix=_FIX) from None
    check(path, [(sizes[file], objects[key]) for key, file in files.items()])
    images = [(_check_image(root, path, file), (file, tuple(objects[key]))) for key, file in files.items()]
    check_any(spec, images)
    classes = names if names and all(i < len(names) for i in indices.values()) else None
    make_checked = partial(_make_checked, annotations=path, sizes=sizes, make_label=make_label)
    return FolderDataset(spec, root, images, preprocess, classes, make_checked, order)


def _read_size(image: Mapping[str, Any]) -> Size | None:
    """Return the size of an image as the file gives it; None if a side is missing or 0, as some tools write."""
    height, width = int(image.get("height") or 0), int(image.get("width") or 0)
    return (height, width) if height and width else None


def refuse_shares(path: Path, coordinates: Iterable[float]) -> None:
    """Refuse a file whose coordinates are all at most 1: read as pixels, every object is a dot in the corner."""
    if 0 < max(coordinates, default=0) <= 1:
        raise DataError(f"{path}: all places are from 0 to 1: shares of the image, not pixels", fix=_SHARES_FIX)


def _make_checked(
    path: Path,
    image: Image,
    source: tuple[str, tuple[Source, ...]],
    *,
    annotations: Path,
    sizes: Mapping[str, Size | None],
    make_label: Callable[[Path, Image, tuple[str, tuple[Source, ...]]], Label],
) -> Label:
    """Make the label of an image, which must have the size that was annotated."""
    name, objects = source
    annotated, actual = sizes[name], upright_size(image)
    if objects and annotated is not None and annotated != actual:
        turned = annotated == actual[::-1]
        raise DataError(
            f"{path} is {actual[0]}x{actual[1]}, but {annotations} gives {annotated[0]}x{annotated[1]}"
            + (": one of them leaves out the EXIF rotation" if turned else ""),
            fix=_TURNED_FIX if turned else _SIZE_FIX,
        )
    return make_label(path, image, source)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_plain(path, MAX_JSON_BYTES.value))
    except FileNotFoundError:
        raise DataError(f"there is no {path}", fix=_FIX) from None
    except RecursionError:
        raise DataError(f"{path} is not in COCO's format: it is nested too deeply", fix=_FIX) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix=MAX_JSON_BYTES.fix) from None
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON: {' '.join(str(error).split())[:200]}", fix=_FIX) from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path} is not in COCO's format: it is a {type(content).__name__}", fix=_FIX)
    return content


def _class_indices(
    path: Path, content: Mapping[str, Any], names: tuple[str, ...] | None
) -> tuple[Order, dict[int, int]]:
    """Return how categories became class indices, and the index of each category's id.

    Files often list a category that no object has, such as the parent of the others. It needs no class.
    """
    by_id = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    if any(not -_MAX_CLASS < number < _MAX_CLASS for number in by_id):
        raise ValueError("a category's id is too large")
    if names is None or are_made_up(names):
        return "indices", {number: number for number in by_id}
    used = {int(annotation["category_id"]) for annotation in content["annotations"]}
    classes = match(f"{path}: category", [name for number, name in by_id.items() if number in used], names, _RENAME)
    return "labels", {number: classes[name] for number, name in by_id.items() if number in used}


def _parse_box(path: Path, annotation: Mapping[str, Any], kind: int) -> _Box:
    left, top, width, height = (float(v) for v in annotation["bbox"])
    if not np.isfinite([left, top, width, height]).all() or width < 0 or height < 0:
        raise DataError(
            f"{path}: the box of annotation {annotation.get('id')} is not valid: {annotation['bbox']}",
            fix="Write a box as left, top, width and height in pixels.",
        )
    return left, top, width, height, kind, is_crowd(annotation)


def _check_boxes(path: Path, images: Sequence[tuple[Size | None, Sequence[_Box]]]) -> None:
    """Refuse boxes that are shares of the image, or whose last two numbers are a corner."""
    boxes = [(size, box) for size, objects in images for box in objects]
    refuse_shares(path, (number for _, box in boxes for number in box[:4]))
    sized = [(size, box) for size, box in boxes if size is not None]
    beyond = [max(box[0] + box[2] - size[1], box[1] + box[3] - size[0]) > _MAX_BEYOND for size, box in sized]
    # The second corner is always the larger one. Boxes right of or below the middle would end outside.
    if sum(beyond) > len(sized) / 4 and all(box[2] > box[0] and box[3] > box[1] for _, box in sized):
        raise DataError(
            f"{path}: {sum(beyond)} of {len(sized)} boxes end outside of their image: are they "
            "left, top, right, bottom?",
            fix=_CORNERS_FIX,
        )


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Return True if an annotation is a group of objects."""
    return bool(annotation.get("iscrowd", 0))


def _check_image(root: Path, path: Path, name: str) -> Path:
    folder = (root / "images").resolve()
    try:
        image = (folder / name).resolve()
        exists = image.is_file()
    except (OSError, ValueError):  # a name that no file can have
        raise DataError(f"{path} lists {name[:80]!r}, which is not the name of a file", fix=_FIX) from None
    if not image.is_relative_to(folder):
        raise DataError(f"{path} lists {name}, which is outside of images/", fix="Put the image into images/.")
    if not exists:
        raise DataError(
            f"{path} lists {name}, which is not in images/", fix="Put the image there, or remove it from the list."
        )
    return root / "images" / name


def _boxes_in_view(path: Path, image: Image, source: tuple[str, tuple[_Box, ...]], *, preprocess: Preprocess) -> Boxes:
    """The objects that the model sees, as shares of its input. Parts outside of its view are cut off."""
    _, objects = source
    sizes = np.array([o[:4] for o in objects], dtype=np.float64).reshape(-1, 4)
    top, left, bottom, right = visible_area(*upright_size(image), preprocess)
    corners = np.concatenate([sizes[:, :2], sizes[:, :2] + sizes[:, 2:]], axis=1)
    shares = (corners - [left, top, left, top]) / np.array([right - left, bottom - top] * 2)
    shares = shares.clip(0, 1)
    inside = (shares[:, 2] > shares[:, 0]) & (shares[:, 3] > shares[:, 1])
    classes = np.array([o[4] for o in objects], dtype=np.int64)
    crowd = np.array([o[5] for o in objects], dtype=bool)
    return Boxes(str(path), shares[inside], classes[inside], crowd[inside])
