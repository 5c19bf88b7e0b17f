"""COCO's matching of boxes and masks (pycocotools), and average precision as a function of the weights of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from vitdeploy.data.labels import Boxes, InstanceMasks
from vitdeploy.errors import DataError
from vitdeploy.session import Array

IOUS = np.linspace(0.5, 0.95, 10)
"""COCO's ten overlap thresholds."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_EVERY_AREA = [[0.0, 1e10]]


class ImageObjects(NamedTuple):
    """The objects of an image: those that a model found, or those that are there.

    Attributes:
        classes: (objects,).
        places: the "bbox" or the "segmentation" of each object, as an annotation of COCO has it.
        facts: (objects,): the scores of those that were found, highest first; True for a crowd of those that are there.
    """

    classes: Array
    places: Sequence[Mapping[str, Any]]
    facts: Array


def match_boxes(answers: Sequence[Array], truth: Sequence[Boxes], limit: int, classes: int) -> dict[str, Array]:
    """Match the boxes of each image with its objects; see `_match`.

    Args:
        answers: the model's boxes for each image, (boxes, 6): left, top, right, bottom, score, class; best first.
        truth: the objects of each image.
        limit: the number of boxes of an image that count.
        classes: the number of the model's classes.
    """
    boxes = [ImageObjects(a[:, 5], [_place_box(box) for box in a[:, :4]], a[:, 4]) for a in answers]
    objects = [ImageObjects(t.classes, [_place_box(box) for box in t.boxes], t.crowd) for t in truth]
    return _match("bbox", boxes, objects, limit, classes)


def match_masks(
    answers: Sequence[ImageObjects], truth: Sequence[InstanceMasks], limit: int, classes: int
) -> dict[str, Array]:
    """Match the masks of each image with its objects; see `_match`.

    Args:
        answers: the model's masks for each image, in the size of the true ones; see `place_mask`.
        truth: the objects of each image.
        limit: the number of masks of an image that count.
        classes: the number of the model's classes.
    """
    objects = [ImageObjects(t.classes, [place_mask(m, t.size) for m in t.masks.tolist()], t.crowd) for t in truth]
    return _match("segm", answers, objects, limit, classes)


def place_mask(run_lengths: bytes, size: tuple[int, int]) -> Mapping[str, Any]:
    """Return a mask of COCO's compressed run lengths as an annotation has it."""
    return {"segmentation": {"counts": run_lengths, "size": list(size)}}


def _match(
    form: Literal["bbox", "segm"],
    answers: Sequence[ImageObjects],
    truth: Sequence[ImageObjects],
    limit: int,
    classes: int,
) -> dict[str, Array]:
    """Match a model's detections in each image with its objects, as COCO's evaluation does.

    Returns:
        "score" (n, limit), -inf where nothing was found; "class" (n, limit), -1 where nothing was found; "hit" and
        "ignored" (n, limit), bit i for threshold i of `IOUS`; "objects" (n, classes), the number of objects to find.

    Raises:
        DataError: pycocotools is not installed.
    """
    n = len(answers)
    score, kind = np.full((n, limit), -np.inf), np.full((n, limit), -1, dtype=np.int32)
    hit, ignored = np.zeros((n, limit), dtype=np.uint16), np.zeros((n, limit), dtype=np.uint16)
    objects = np.zeros((n, classes), dtype=np.int32)
    for i, (side, labels) in enumerate(zip(answers, truth, strict=True)):
        count = min(limit, len(side.classes))
        score[i, :count], kind[i, :count] = side.facts[:count], side.classes[:count]
        np.add.at(objects[i], labels.classes[~labels.facts], 1)
    bits = 1 << np.arange(len(IOUS), dtype=np.uint16)
    for match in _run_cocoeval(form, answers, truth, limit):
        places = np.array(match["dtIds"], dtype=np.int64) - 1
        if len(places):
            hit.flat[places] = (bits @ (match["dtMatches"] > 0)).astype(np.uint16)
            ignored.flat[places] = (bits @ (match["dtIgnore"] > 0)).astype(np.uint16)
    return {"score": score, "class": kind, "hit": hit, "ignored": ignored, "objects": objects}


def average_precision(values: dict[str, Array]) -> Callable[[Array], Array]:
    """Return a function from the weights of images, shape (n,), to average precision, shape (thresholds, classes).

    It is computed as in COCOeval.accumulate, interpolated at 101 recalls, and NaN for a class without objects. Only
    hits change recall and the envelope of precision, so for each threshold only the places of its hits are used.
    """
    limit = values["score"].shape[1]
    boxes = np.flatnonzero(values["class"].ravel() >= 0)
    # Of equal scores the earlier image comes first, as in COCOeval's mergesort.
    order = boxes[np.lexsort((boxes, -values["score"].ravel()[boxes], values["class"].ravel()[boxes]))]
    kind, image = values["class"].ravel()[order], order // limit
    hit, ignored = values["hit"].ravel()[order], values["ignored"].ravel()[order]
    classes = values["objects"].shape[1]
    starts = np.searchsorted(kind, np.arange(classes + 1))
    objects = values["objects"].astype(np.float64)

    def compute(weights: Array) -> Array:
        objects_of_class = weights @ objects
        weight = weights[image]
        total = np.concatenate([[0.0], np.cumsum(weight)])
        result = np.full((len(IOUS), classes), np.nan)
        for t in range(len(IOUS)):
            bit = np.uint16(1 << t)
            skipped = np.concatenate([[0.0], np.cumsum(weight * ((ignored & bit) > 0))])
            places = np.flatnonzero(((hit & bit) > 0) & ((ignored & bit) == 0) & (weight > 0))
            bounds = np.searchsorted(places, starts)
            for c in np.flatnonzero(objects_of_class):
                at = places[bounds[c] : bounds[c + 1]]
                counted = (total - skipped)[at + 1] - (total - skipped)[starts[c]]
                result[t, c] = _average_over_recalls(np.cumsum(weight[at]), counted, objects_of_class[c])
        return result

    return compute


def _average_over_recalls(hits: Array, counted: Array, objects: float) -> float:
    """Average the precision over the 101 recalls, from the hits and the boxes counted up to each hit."""
    if not len(hits):
        return 0.0
    envelope = np.maximum.accumulate((hits / counted)[::-1])[::-1]
    places = np.searchsorted(hits / objects, _RECALLS, side="left")
    reached = places < len(hits)
    return float(envelope[places[reached]].sum() / len(_RECALLS))


def _run_cocoeval(
    form: str, answers: Sequence[ImageObjects], truth: Sequence[ImageObjects], limit: int
) -> list[dict[str, Any]]:
    """Return COCOeval's matches for each image and class; detection j of image i has the number i * limit + j + 1."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise DataError(
            "mAP needs pycocotools, which is not installed", fix="pip install 'vitdeploy[detection]'."
        ) from None
    objects: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for i, labels in enumerate(truth):
        for kind, place, crowd in zip(*labels, strict=True):
            objects.append({**_annotation(len(objects) + 1, i, kind, place), "iscrowd": int(crowd)})
    for i, side in enumerate(answers):
        for j, (kind, place, score) in enumerate(islice(zip(*side, strict=True), limit)):
            detections.append({**_annotation(i * limit + j + 1, i, kind, place), "score": float(score)})
    images = [{"id": i, "height": 0, "width": 0} for i in range(len(answers))]  # a size is read for polygons only
    kinds = sorted({a["category_id"] for a in (*objects, *detections)})
    both = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for annotations in (objects, detections):
            coco = COCO()
            coco.dataset = {"images": images, "categories": [{"id": k} for k in kinds], "annotations": annotations}
            coco.createIndex()
            both.append(coco)
        evaluation = COCOeval(*both, iouType=form)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = _EVERY_AREA, ["all"]
        evaluation.params.maxDets = [limit]
        evaluation.params.iouThrs = IOUS
        evaluation.evaluate()
    return [match for match in evaluation.evalImgs if match is not None]


def _place_box(box: Array) -> Mapping[str, Any]:
    left, top, right, bottom = (float(v) for v in box)
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}


def _annotation(number: int, image: int, kind: float, place: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": int(kind), "area": 1.0, "iscrowd": 0, **place}
