"""Images with boxes: `images/` beside `annotations.json` in COCO's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data._folder import FolderDataset, check_any
from vitdeploy.data.labels import Boxes
from vitdeploy.data.preprocess import upright, view
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

_FILE = "annotations.json"
_FIX = (
    "Write it as COCO does: images (id, file_name), annotations (image_id, category_id, bbox), categories (id, name)."
)

Objects = tuple[tuple[float, float, float, float, int, bool], ...]
"""Left, top, width, height in pixels, class, crowd."""


def open_boxes(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None
) -> FolderDataset[tuple[str, Objects]]:
    """The images that the file lists; one without an object is one where nothing is to be found.

    A category's class is the index of its name among the model's class `names`, if all categories are there; else
    its id.

    Raises:
        DataError: the file is missing, is not COCO's form, or names images that are not there.
    """
    path = root / _FILE
    content = _read(path)
    try:
        indices = _indices(content["categories"], names)
        objects: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(_object(path, annotation, indices))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not COCO's form: {type(error).__name__} {error}", fix=_FIX) from None
    listed = [(_image(root, path, file), (file, tuple(objects[key]))) for key, file in files.items()]
    check_any(spec, listed)
    classes = names if names and all(i < len(names) for i in indices.values()) else None
    return FolderDataset(spec, root, listed, preprocess, classes, partial(_boxes, preprocess=preprocess))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no {path}", fix=_FIX) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {' '.join(str(error).split())[:200]}", fix=_FIX) from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path} is not COCO's form: it is a {type(content).__name__}", fix=_FIX)
    return content


def _indices(categories: list[dict[str, Any]], names: tuple[str, ...] | None) -> dict[int, int]:
    """Category id -> class index."""
    own = [str(c["name"]) for c in categories]
    if names and own and all(names.count(name) == 1 for name in own):
        return {int(c["id"]): names.index(str(c["name"])) for c in categories}
    return {int(c["id"]): int(c["id"]) for c in categories}


def _object(path: Path, raw: Mapping[str, Any], indices: Mapping[int, int]) -> tuple[Any, ...]:
    left, top, width, height = (float(v) for v in raw["bbox"])
    if not np.isfinite([left, top, width, height]).all() or width < 0 or height < 0:
        raise DataError(
            f"{path}: annotation {raw.get('id')} has the box {raw['bbox']}", fix="Boxes are left, top, width, height."
        )
    return left, top, width, height, indices[int(raw["category_id"])], bool(raw.get("iscrowd", 0))


def _image(root: Path, path: Path, name: str) -> Path:
    folder = (root / "images").resolve()
    image = (folder / name).resolve()
    if not image.is_relative_to(folder):
        raise DataError(f"{path} names {name}, which leaves its folder", fix="Put the image into images/.")
    if not image.is_file():
        raise DataError(f"{path} names {name}, which is not in images/", fix="Put it there, or take it off the list.")
    return root / "images" / name


def _boxes(path: Path, image: Image, known: tuple[str, Objects], *, preprocess: Preprocess) -> Boxes:
    """The objects that the model sees, as shares of its input; what lies outside of its view is cut off."""
    _, objects = known
    raw = np.array([o[:4] for o in objects], dtype=np.float64).reshape(-1, 4)
    top, left, bottom, right = view(*upright(image), preprocess)
    corners = np.concatenate([raw[:, :2], raw[:, :2] + raw[:, 2:]], axis=1)
    shares = (corners - [left, top, left, top]) / np.array([right - left, bottom - top] * 2)
    shares = shares.clip(0, 1)
    inside = (shares[:, 2] > shares[:, 0]) & (shares[:, 3] > shares[:, 1])
    classes = np.array([o[4] for o in objects], dtype=np.int64)
    crowd = np.array([o[5] for o in objects], dtype=bool)
    return Boxes(str(path), shares[inside], classes[inside], crowd[inside])
