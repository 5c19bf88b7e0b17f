"""Images with a label for each pixel: `images/` beside `masks/` or `depth/`, with equal file names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data._folder import FolderDataset, check_any, filter_images
from vitdeploy.data.array_files import read_npy
from vitdeploy.data.geometry import cut_to_view
from vitdeploy.data.images import open_image
from vitdeploy.data.labels import ClassMask, DepthMap, Label
from vitdeploy.data.preprocess import upright_size
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # P: the indices into the palette are the classes


def open_masks(spec: str, root: Path, preprocess: Preprocess) -> FolderDataset[Path]:
    """Open `images/` and `masks/`: grey or palette PNGs whose values are class indices.

    Raises:
        DataError: there are no images, or an image has no mask.
    """
    return _open(spec, root, preprocess, "masks", (".png", ".tif", ".tiff", ".bmp"), _read_mask)


def open_depth(spec: str, root: Path, preprocess: Preprocess) -> FolderDataset[Path]:
    """Open `images/` and `depth/`: floating-point .npy in metres, or integer .npy or PNG in the task's unit.

    Raises:
        DataError: there are no images, or an image has no depth map.
    """
    return _open(spec, root, preprocess, "depth", (".npy", ".png", ".tif", ".tiff"), _read_depth)


def _open(
    spec: str, root: Path, preprocess: Preprocess, folder: str, suffixes: tuple[str, ...], read: Callable[[Path], Array]
) -> FolderDataset[Path]:
    images = filter_images((root / "images").rglob("*"))
    check_any(f"{spec}/images", images)
    files = []
    for image in images:
        stem = image.relative_to(root / "images").with_suffix("")
        candidates = (root / folder / stem.parent / f"{stem.name}{suffix}" for suffix in suffixes)
        label = next((path for path in candidates if path.is_file()), None)
        if label is None:
            raise DataError(
                f"{image} has no label {folder}/{stem}",
                fix=f"Put {' or '.join(suffixes)} files with the names of the images into {root / folder}.",
            )
        files.append((image, label))
    return FolderDataset(spec, root, files, preprocess, None, partial(_label_in_view, read=read, preprocess=preprocess))


def _label_in_view(
    image_path: Path, image: Image, path: Path, *, read: Callable[[Path], Array], preprocess: Preprocess
) -> Label:
    """The part of the label that belongs to the part of the image that the model sees."""
    values = read(path)
    height, width = upright_size(image)
    if values.shape != (height, width):
        label_size = "x".join(map(str, values.shape))
        raise DataError(
            f"{path} is {label_size}, but its image {image_path} is {height}x{width}",
            fix="Give the label the size of its image.",
        )
    rows, columns, view = cut_to_view(height, width, preprocess)
    part = values[rows, columns]
    return ClassMask(str(path), part, view) if read is _read_mask else DepthMap(str(path), part, view)


def _read_mask(path: Path) -> Array:
    image = open_image(path)
    if image.mode not in _GREY_MODES:
        raise DataError(
            f"{path} is an image in mode {image.mode}, not a mask of class indices",
            fix="Save it as a grey or palette PNG whose values are the class indices.",
        )
    return np.asarray(image).astype(np.int64)


def _read_depth(path: Path) -> Array:
    if path.suffix == ".npy":
        values = read_npy(path, "Save it with numpy.save.")
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
            raise DataError(
                f"{path} is {values.dtype} {values.shape}, not numbers of shape (height, width)",
                fix="Save a depth map of one image.",
            )
        return values
    image = open_image(path)
    if image.mode not in (*_GREY_MODES, "F"):
        raise DataError(
            f"{path} is an image in mode {image.mode}, not a depth map", fix="Save it as a 16-bit grey PNG."
        )
    values = np.asarray(image)
    return values if image.mode == "F" else values.astype(np.int64)
