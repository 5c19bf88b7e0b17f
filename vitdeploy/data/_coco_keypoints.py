"""Images of one person each, with keypoints in COCO's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitdeploy.data._coco import Size, open_annotated, refuse_shares
from vitdeploy.data._folder import FolderDataset
from vitdeploy.data.geometry import visible_area
from vitdeploy.data.labels import Keypoints
from vitdeploy.data.preprocess import upright_size
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

_FIX = "Write keypoints as COCO does: x, y and 0, 1 or 2 (not labelled, hidden, visible) for each, in one fixed order."
_AREA_FIX = "Write the area of the person's mask in pixels. Without masks, 0.53 of the area of the box is usual."
_ONE = "Cut each person out into an image of their own, and write keypoints, box and area in its pixels."


class _Person(NamedTuple):
    """An annotation: x, y and visibility of each keypoint, the longer side of the box, and the area, in pixels."""

    keypoints: tuple[tuple[float, float, float], ...]
    side: float
    area: float


def open_keypoints(
    spec: str, root: Path, preprocess: Preprocess
) -> FolderDataset[tuple[str, tuple[_Person | None, ...]]]:
    """Open the images that the file lists, with the keypoints of the one person in each; see `open_annotated`."""
    make_label = partial(_make_label, preprocess=preprocess)
    return open_annotated(spec, root, preprocess, None, _parse_person, make_label, _check_people)


def _parse_person(path: Path, annotation: Mapping[str, Any], kind: int) -> _Person | None:  # noqa: ARG001
    """Read an annotation; None if no keypoint of it is labelled."""
    numbers = [float(number) for number in annotation.get("keypoints") or ()]
    where = f"{path}: annotation {annotation.get('id')}"
    if len(numbers) % 3 or not np.isfinite(numbers).all():
        raise DataError(f"{where} has keypoints that are not valid: {str(numbers)[:80]}", fix=_FIX)
    points = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    if not any(visible > 0 for _, _, visible in points):
        return None
    width, height = (float(side) for side in annotation["bbox"][2:])
    area = float(annotation.get("area") or 0)
    if not (np.isfinite([width, height, area]).all() and min(width, height, area) > 0):
        raise DataError(f"{where} has keypoints, but no box or no area above 0", fix=_AREA_FIX)
    return _Person(points, max(width, height), area)


def _check_people(path: Path, images: Sequence[tuple[Size | None, Sequence[_Person | None]]]) -> None:
    people = [person for _, objects in images for person in objects if person is not None]
    refuse_shares(path, (place for person in people for x, y, _ in person.keypoints for place in (x, y)))


def _make_label(
    path: Path, image: Image, source: tuple[str, tuple[_Person | None, ...]], *, preprocess: Preprocess
) -> Keypoints:
    people = [person for person in source[1] if person is not None]
    if len(people) != 1:
        raise DataError(f"{path} has {len(people)} people with keypoints, and a pose is that of one person", fix=_ONE)
    (person,) = people
    top, left, bottom, right = visible_area(*upright_size(image), preprocess)
    numbers = np.array(person.keypoints, dtype=np.float64)
    return Keypoints(
        str(path),
        numbers[:, :2] - [left, top],
        numbers[:, 2] > 0,
        np.array([person.area, person.side]),
        np.array([bottom - top, right - left]),
    )
