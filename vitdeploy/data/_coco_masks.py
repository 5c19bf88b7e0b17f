"""Images with a mask for each object: the "segmentation" in COCO's format."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitdeploy.data._coco import Size, is_crowd, open_annotated, refuse_shares
from vitdeploy.data._folder import FolderDataset
from vitdeploy.data.geometry import cut_to_view
from vitdeploy.data.labels import InstanceMasks
from vitdeploy.data.outlines import Outline, RunLengths, compress, draw_outline, parse_outline
from vitdeploy.data.preprocess import upright_size
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

_FIX = (
    "Write its segmentation as COCO does, in pixels of its image: polygons [[x, y, …]], or run lengths. An object "
    "without an outline cannot be judged: remove its annotation."
)


class _Object(NamedTuple):
    """An annotation: its id and file for messages, its outline, its class, and True if it is a crowd."""

    place: str
    outline: Outline
    kind: int
    crowd: bool


def open_instances(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None
) -> FolderDataset[tuple[str, tuple[_Object, ...]]]:
    """Open the images that the file lists, with the masks of their objects; see `open_annotated`."""
    make_label = partial(_masks_in_view, preprocess=preprocess)
    return open_annotated(spec, root, preprocess, names, _parse_object, make_label, _check_polygons)


def _parse_object(path: Path, annotation: Mapping[str, Any], kind: int) -> _Object:
    number = annotation.get("id")
    try:
        outline = parse_outline(annotation.get("segmentation"))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"{path}: the mask of annotation {number} is not valid: {error}", fix=_FIX) from None
    return _Object(f"annotation {number}", outline, kind, is_crowd(annotation))


def _check_polygons(path: Path, images: Sequence[tuple[Size | None, Sequence[_Object]]]) -> None:
    outlines = [one.outline for _, objects in images for one in objects]
    polygons = [polygon for outline in outlines if not isinstance(outline, RunLengths) for polygon in outline]
    refuse_shares(path, itertools.chain.from_iterable(polygons))


def _masks_in_view(
    path: Path, image: Image, source: tuple[str, tuple[_Object, ...]], *, preprocess: Preprocess
) -> InstanceMasks:
    """Return the masks of the objects that the model sees. Parts outside of its view are cut off."""
    size = upright_size(image)
    rows, columns, view = cut_to_view(*size, preprocess)
    visible: list[tuple[bytes, int, bool]] = []
    for one in source[1]:
        try:
            mask = draw_outline(one.outline, size)[rows, columns]
        except ValueError as error:
            raise DataError(f"{path}: the mask of {one.place} does not fit: {error}", fix=_FIX) from None
        if mask.any():
            visible.append((compress(mask), one.kind, one.crowd))
    masks, classes, crowd = zip(*visible, strict=True) if visible else ((), (), ())
    seen = len(range(*rows.indices(size[0]))), len(range(*columns.indices(size[1])))
    return InstanceMasks(
        str(path),
        np.array(masks, dtype=bytes if visible else "S1"),
        np.array(classes, dtype=np.int64),
        np.array(crowd, dtype=bool),
        seen,
        view,
    )
