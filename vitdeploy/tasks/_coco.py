"""COCO's matching of boxes (pycocotools), and average precision as a function of the weights of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitdeploy.data.labels import Boxes
from vitdeploy.errors import DataError
from vitdeploy.session import Array

IOUS = np.linspace(0.5, 0.95, 10)
"""COCO's ten overlap thresholds."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_EVERY_AREA = [[0.0, 1e10]]


def match_boxes(answers: Sequence[Array], truth: Sequence[Boxes], limit: int, classes: int) -> dict[str, Array]:
    """Match the boxes of each image with its objects, as COCO's evaluation does.

    Args:
        answers: the model's boxes for each image, (boxes, 6): left, top, right, bottom, score, class; best first.
        truth: the objects of each image.
        limit: the number of boxes of an image that count.
        classes: the number of the model's classes.

    Returns:
        "score" (n, limit), -inf where there is no box; "class" (n, limit), -1 where there is no box; "hit" and
        "ignored" (n, limit), bit i for threshold i of `IOUS`; "objects" (n, classes), the number of objects to find.

    Raises:
        DataError: pycocotools is not installed.
    """
    n = len(answers)
    score, kind = np.full((n, limit), -np.inf), np.full((n, limit), -1, dtype=np.int32)
    hit, ignored = np.zeros((n, limit), dtype=np.uint16), np.zeros((n, limit), dtype=np.uint16)
    objects = np.zeros((n, classes), dtype=np.int32)
    for i, (boxes, labels) in enumerate(zip(answers, truth, strict=True)):
        count = min(limit, len(boxes))
        score[i, :count], kind[i, :count] = boxes[:count, 4], boxes[:count, 5]
        np.add.at(objects[i], labels.classes[~labels.crowd], 1)
    bits = 1 << np.arange(len(IOUS), dtype=np.uint16)
    for match in _run_cocoeval(answers, truth, limit):
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


def _run_cocoeval(answers: Sequence[Array], truth: Sequence[Boxes], limit: int) -> list[dict[str, Any]]:
    """Return COCOeval's matches for each image and class with boxes; box j of image i has the id i * limit + j + 1."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise DataError(
            "mAP needs pycocotools, which is not installed", fix="pip install 'vitdeploy[detection]'."
        ) from None
    objects: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for i, labels in enumerate(truth):
        for box, kind, crowd in zip(labels.boxes, labels.classes, labels.crowd, strict=True):
            objects.append({**_annotation(len(objects) + 1, i, box, kind), "iscrowd": int(crowd)})
    for i, answer in enumerate(answers):
        for j, box in enumerate(answer[:limit]):
            boxes.append({**_annotation(i * limit + j + 1, i, box[:4], box[5]), "score": float(box[4])})
    images = [{"id": i} for i in range(len(answers))]
    kinds = sorted({a["category_id"] for a in (*objects, *boxes)})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for annotations in (objects, boxes):
            side = COCO()
            side.dataset = {"images": images, "categories": [{"id": k} for k in kinds], "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = _EVERY_AREA, ["all"]
        evaluation.params.maxDets = [limit]
        evaluation.params.iouThrs = IOUS
        evaluation.evaluate()
    return [match for match in evaluation.evalImgs if match is not None]


def _annotation(number: int, image: int, box: Array, kind: float) -> dict[str, Any]:
    left, top, right, bottom = (float(v) for v in box)
    width, height = right - left, bottom - top
    return {
        "id": number, "image_id": image, "category_id": int(kind), "bbox": [left, top, width, height],
        "area": width * height, "iscrowd": 0,
    }  # fmt: skip
