"""Images with a label for each pixel: `images/` beside `masks/` or `depth/`, by the same names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data._folder import FolderDataset, check_any, images_in
from vitdeploy.data.labels import ClassMask, DepthMap, Label
from vitdeploy.data.preprocess import open_image, upright, view
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # a palette's indices are the classes


def open_masks(spec: str, root: Path, preprocess: Preprocess) -> FolderDataset[Path]:
    """`images/` and `masks/`: grey or palette PNGs whose values are class indices.

    Raises:
        DataError: no images, or an image without a mask.
    """
    return _open(spec, root, preprocess, "masks", (".png", ".tif", ".tiff", ".bmp"), _mask)


def open_depth(spec: str, root: Path, preprocess: Preprocess) -> FolderDataset[Path]:
    """`images/` and `depth/`: floating point .npy in metres, or integer .npy or PNG in a unit that the task knows.

    Raises:
        DataError: no images, or an image without a depth map.
    """
    return _open(spec, root, preprocess, "depth", (".npy", ".png", ".tif", ".tiff"), _depth)


def _open(
    spec: str, root: Path, preprocess: Preprocess, folder: str, suffixes: tuple[str, ...], read: Callable[[Path], Array]
) -> FolderDataset[Path]:
    images = images_in((root / "images").rglob("*"))
    check_any(f"{spec}/images", images)
    files = []
    for image in images:
        beside = (root / folder / image.relative_to(root / "images")).with_suffix("")
        label = next((p for s in suffixes if (p := beside.with_name(beside.name + s)).is_file()), None)
        if label is None:
            raise DataError(
                f"{image} has no {folder}/{image.relative_to(root / 'images').with_suffix('')} beside it",
                fix=f"Put {' or '.join(suffixes)} files of the same name into {root / folder}.",
            )
        files.append((image, label))
    return FolderDataset(spec, root, files, preprocess, None, partial(_seen, read=read, preprocess=preprocess))


def _seen(
    image_path: Path, image: Image, path: Path, *, read: Callable[[Path], Array], preprocess: Preprocess
) -> Label:
    """The part of the label that the model sees of its image."""
    values = read(path)
    height, width = upright(image)
    if values.shape != (height, width):
        given = "x".join(map(str, values.shape))
        raise DataError(
            f"{path} is {given}, its image {image_path} is {height}x{width}", fix="Give it the size of its image."
        )
    top, left, bottom, right = (round(edge) for edge in view(height, width, preprocess))
    part = values[max(top, 0) : bottom, max(left, 0) : right]
    return ClassMask(str(path), part) if read is _mask else DepthMap(str(path), part)


def _mask(path: Path) -> Array:
    image = open_image(path)
    if image.mode not in _GREY:
        raise DataError(
            f"{path} is a picture in {image.mode}, not a mask of class indices",
            fix="Save it as a grey or palette PNG whose values are the class indices.",
        )
    return np.asarray(image).astype(np.int64)


def _depth(path: Path) -> Array:
    if path.suffix == ".npy":
        try:
            values: Array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            reason = "it has pickled objects in it" if "allow_pickle" in str(error) else " ".join(str(error).split())
            raise DataError(f"{path} is no plain array: {reason[:200]}", fix="Save it with numpy.save.") from None
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
            raise DataError(f"{path} is {values.dtype} {values.shape}, not (height, width)", fix="Save a depth map.")
        return values
    image = open_image(path)
    if image.mode not in (*_GREY, "F"):
        raise DataError(f"{path} is a picture in {image.mode}, not a depth map", fix="Save it as a 16-bit grey PNG.")
    values = np.asarray(image)
    return values if image.mode == "F" else values.astype(np.int64)
