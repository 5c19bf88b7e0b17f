"""Images with boxes: `images/` beside `annotations.json` in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data._folder import FolderDataset, check_any
from vitdeploy.data.geometry import visible_area
from vitdeploy.data.labels import Boxes
from vitdeploy.data.preprocess import upright_size
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_JSON_BYTES
from vitdeploy.plain_files import read_plain
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

_FILE = "annotations.json"
_FIX = "COCO's format is: images (id, file_name), annotations (image_id, category_id, bbox), categories (id, name)."

_MAX_CLASS = 1 << 31

Objects = tuple[tuple[float, float, float, float, int, bool], ...]
"""Left, top, width, height in pixels, class, crowd."""


def open_boxes(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None
) -> FolderDataset[tuple[str, Objects]]:
    """Open the images that the file lists. An image may have no objects.

    A category's class is the index of its name in the model's class `names`, if they contain all categories. Otherwise
    it is the category's id.

    Raises:
        DataError: the file is missing, is not in COCO's format, or lists an image that does not exist.
    """
    path = root / _FILE
    content = _read(path)
    try:
        indices = _class_indices(content["categories"], names)
        objects: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(_parse_object(path, annotation, indices))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is not in COCO's format: {type(error).__name__} {error}", fix=_FIX) from None
    images = [(_check_image(root, path, file), (file, tuple(objects[key]))) for key, file in files.items()]
    check_any(spec, images)
    classes = names if names and all(i < len(names) for i in indices.values()) else None
    return FolderDataset(spec, root, images, preprocess, classes, partial(_boxes_in_view, preprocess=preprocess))


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


def _class_indices(categories: list[dict[str, Any]], names: tuple[str, ...] | None) -> dict[int, int]:
    """Category id -> class index."""
    category_names = [str(c["name"]) for c in categories]
    if any(not -_MAX_CLASS < int(c["id"]) < _MAX_CLASS for c in categories):
        raise ValueError("a category's id is too large")
    if names and category_names and all(names.count(name) == 1 for name in category_names):
        return {int(c["id"]): names.index(str(c["name"])) for c in categories}
    return {int(c["id"]): int(c["id"]) for c in categories}


def _parse_object(path: Path, annotation: Mapping[str, Any], indices: Mapping[int, int]) -> tuple[Any, ...]:
    left, top, width, height = (float(v) for v in annotation["bbox"])
    if not np.isfinite([left, top, width, height]).all() or width < 0 or height < 0:
        raise DataError(
            f"{path}: the box of annotation {annotation.get('id')} is not valid: {annotation['bbox']}",
            fix="Write a box as left, top, width and height in pixels.",
        )
    return left, top, width, height, indices[int(annotation["category_id"])], bool(annotation.get("iscrowd", 0))


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


def _boxes_in_view(path: Path, image: Image, source: tuple[str, Objects], *, preprocess: Preprocess) -> Boxes:
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
