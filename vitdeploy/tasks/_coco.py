"""COCO's matching of boxes (pycocotools), and average precision from it as a function of how often images count."""

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
"""COCO's ten thresholds of overlap."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_EVERY_AREA = [[0.0, 1e10]]


def matches(found: Sequence[Array], truth: Sequence[Boxes], kept: int, classes: int) -> dict[str, Array]:
    """What COCO's evaluation makes of the boxes in each image.

    Args:
        found: for each image (boxes, 6): left, top, right, bottom, score, class; best first.
        truth: the objects of each image.
        kept: how many boxes of an image count.
        classes: of the model.

    Returns:
        "score" (n, kept), -inf where there is no box; "class" (n, kept), -1 there; "hit" and "ignored" (n, kept), the
        bit i for threshold i of `IOUS`; "objects" (n, classes), those to be found.

    Raises:
        DataError: pycocotools is not installed.
    """
    n = len(found)
    score, kind = np.full((n, kept), -np.inf), np.full((n, kept), -1, dtype=np.int32)
    hit, ignored = np.zeros((n, kept), dtype=np.uint16), np.zeros((n, kept), dtype=np.uint16)
    objects = np.zeros((n, classes), dtype=np.int32)
    for i, (boxes, labels) in enumerate(zip(found, truth, strict=True)):
        count = min(kept, len(boxes))
        score[i, :count], kind[i, :count] = boxes[:count, 4], boxes[:count, 5]
        np.add.at(objects[i], labels.classes[~labels.crowd], 1)
    bits = 1 << np.arange(len(IOUS), dtype=np.uint16)
    for verdict in _evaluated(found, truth, kept):
        places = np.array(verdict["dtIds"], dtype=np.int64) - 1
        if len(places):
            hit.flat[places] = (bits @ (verdict["dtMatches"] > 0)).astype(np.uint16)
            ignored.flat[places] = (bits @ (verdict["dtIgnore"] > 0)).astype(np.uint16)
    return {"score": score, "class": kind, "hit": hit, "ignored": ignored, "objects": objects}


def precision(values: dict[str, Array]) -> Callable[[Array], Array]:
    """Average precision, shape (thresholds, classes), as a function of how often each image counts, shape (n,).

    As COCOeval.accumulate computes it: interpolated at 101 recalls. NaN for a class without objects. Only hits move
    recall and the envelope of precision, so each threshold looks at the places of its hits alone.
    """
    kept = values["score"].shape[1]
    seen = np.flatnonzero(values["class"].ravel() >= 0)
    # Of equal scores the earlier image comes first, as in COCOeval's mergesort.
    order = seen[np.lexsort((seen, -values["score"].ravel()[seen], values["class"].ravel()[seen]))]
    kind, image = values["class"].ravel()[order], order // kept
    hit, ignored = values["hit"].ravel()[order], values["ignored"].ravel()[order]
    classes = values["objects"].shape[1]
    starts = np.searchsorted(kind, np.arange(classes + 1))
    objects = values["objects"].astype(np.float64)

    def weigh(weights: Array) -> Array:
        wanted = weights @ objects
        weight = weights[image]
        total = np.concatenate([[0.0], np.cumsum(weight)])
        found = np.full((len(IOUS), classes), np.nan)
        for t in range(len(IOUS)):
            bit = np.uint16(1 << t)
            skipped = np.concatenate([[0.0], np.cumsum(weight * ((ignored & bit) > 0))])
            places = np.flatnonzero(((hit & bit) > 0) & ((ignored & bit) == 0) & (weight > 0))
            bounds = np.searchsorted(places, starts)
            for c in np.flatnonzero(wanted):
                at = places[bounds[c] : bounds[c + 1]]
                judged = (total - skipped)[at + 1] - (total - skipped)[starts[c]]
                found[t, c] = _average(np.cumsum(weight[at]), judged, wanted[c])
        return found

    return weigh


def _average(hits: Array, judged: Array, wanted: float) -> float:
    """Average precision at the 101 recalls, from the hits and all boxes judged up to each hit."""
    if not len(hits):
        return 0.0
    envelope = np.maximum.accumulate((hits / judged)[::-1])[::-1]
    places = np.searchsorted(hits / wanted, _RECALLS, side="left")
    reached = places < len(hits)
    return float(envelope[places[reached]].sum() / len(_RECALLS))


def _evaluated(found: Sequence[Array], truth: Sequence[Boxes], kept: int) -> list[dict[str, Any]]:
    """COCOeval's verdicts, one for each image and class with boxes; box j of image i has the id i * kept + j + 1."""
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
    for i, answer in enumerate(found):
        for j, box in enumerate(answer[:kept]):
            boxes.append({**_annotation(i * kept + j + 1, i, box[:4], box[5]), "score": float(box[4])})
    images = [{"id": i} for i in range(len(found))]
    kinds = sorted({a["category_id"] for a in (*objects, *boxes)})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        for annotations in (objects, boxes):
            side = COCO()
            side.dataset = {"images": images, "categories": [{"id": k} for k in kinds], "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = _EVERY_AREA, ["all"]
        evaluation.params.maxDets = [kept]
        evaluation.params.iouThrs = IOUS
        evaluation.evaluate()
    return [verdict for verdict in evaluation.evalImgs if verdict is not None]


def _annotation(number: int, image: int, box: Array, kind: float) -> dict[str, Any]:
    left, top, right, bottom = (float(v) for v in box)
    width, height = right - left, bottom - top
    return {
        "id": number, "image_id": image, "category_id": int(kind), "bbox": [left, top, width, height],
        "area": width * height, "iscrowd": 0,
    }  # fmt: skip
