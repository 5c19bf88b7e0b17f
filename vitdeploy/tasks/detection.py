"""Object detection: COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.labels import Boxes, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Box
from vitdeploy.session import Array
from vitdeploy.tasks import (
    Form,
    PerSample,
    Task,
    Values,
    Weigh,
    _coco,
    _outputs,
    check_count,
    finite_samples,
    name_of,
    share_line,
)

_PERCENT = 100.0
_SAME_BOX = 0.5  # overlap (IoU) from which on two boxes are about one object
_SLACK = 0.8  # a box that the other side is sure of may have this share of the threshold here
_BARELY = 1.0  # mAP in percent, at or below which a reference finds nothing
_FIX = "Give a detector that gives queries (DETR, YOLOS), or name its outputs in task.output and task.boxes."


class Detection(Task):
    """Objects, out of (batch, queries, classes) scores and (batch, queries, 4) boxes: centre, width, height, 0 to 1.

    Attributes:
        output: names the scores; by default "logits".
        boxes: names the boxes; by default "pred_boxes".
        scores: "softmax": the last class is "no object", and each query gives its best other class (DETR, YOLOS).
            "sigmoid": every class of every query is a candidate (Deformable DETR, RT-DETR).
        max_detections: the best boxes of an image that count.
        confident: the score from which on `predict` shows a box and agreement looks at it.
    """

    data: ClassVar[Form] = "boxes"
    metric_names: ClassVar[Mapping[str, str]] = {"map": "mAP", "map50": "mAP at 0.5", "map75": "mAP at 0.75"}
    units: ClassVar[Mapping[str, str]] = {"map": "points", "map50": "points", "map75": "points"}
    order_only: ClassVar[frozenset[str]] = frozenset({"score"})
    output: str | None = None
    boxes: str | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"
    max_detections: Annotated[int, Field(ge=1)] = 100
    confident: Annotated[float, Field(gt=0, le=1)] = 0.5

    def answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """For each image (boxes, 6): left, top, right, bottom as shares of the input, score, class; best first."""
        probabilities, places = self._read(outputs)
        finite = finite_samples(outputs)
        return [
            self._best(p, b) if usable else np.zeros((0, 6))
            for p, b, usable in zip(probabilities, places, finite, strict=True)
        ]

    def alike(self, reference: Array, deployed: Array) -> float:
        """The F1 of the boxes that either side is sure of, matched with overlapping boxes of the same class.

        A box just below the threshold still answers one just above it. Where neither side is sure of anything, what
        is left to compare is how sure they are of their best box.
        """
        sure = [side[side[:, 4] >= self.confident] for side in (reference, deployed)]
        count = len(sure[0]) + len(sure[1])
        if not count:
            best = [float(side[:, 4].max(initial=0.0)) for side in (reference, deployed)]
            return 1 - abs(best[0] - best[1])
        nearly = [side[side[:, 4] >= _SLACK * self.confident] for side in (reference, deployed)]
        return (_matched(sure[0], nearly[1]) + _matched(sure[1], nearly[0])) / count

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """COCO's matches at ten overlaps, for each of the boxes that count; none where the outputs are not finite."""
        found = self.answers(outputs)
        check_count(len(found), labels)
        classes = self._read(outputs)[0].shape[2]
        truth = [_boxes(label, classes) for label in labels]
        values = _coco.matches(found, truth, self.max_detections, classes)
        return PerSample(values, found, finite_samples(outputs))

    def weigher(self, values: Values) -> Weigh:
        """In percent: averaged over overlaps from 0.5 to 0.95 and over the classes that occur; at 0.5; at 0.75."""
        precision = _coco.precision(dict(values))

        def weigh(weights: Array) -> dict[str, float]:
            found = precision(weights)
            present = ~np.isnan(found[0])
            if not present.any():
                return dict.fromkeys(self.units, np.nan)
            by_overlap = _PERCENT * found[:, present].mean(axis=1)
            at = {round(float(iou), 2): float(value) for iou, value in zip(_coco.IOUS, by_overlap, strict=True)}
            return {"map": float(by_overlap.mean()), "map50": at[0.5], "map75": at[0.75]}

        return weigh

    def doubts(self, values: Values) -> list[str]:
        """The reference finds next to nothing."""
        found = self.aggregate(values)["map50"]
        if found > _BARELY:
            return []
        return [
            f"the reference reaches {found:.2f} % mAP at an overlap of 0.5, which is nothing: do the categories have "
            "the model's class indices or names, and are the scores what task.scores says?"
        ]

    def describe(
        self, outputs: Mapping[str, Array], labels: tuple[str, ...] | None, view: tuple[float, float, float, float]
    ) -> Answer:
        """The boxes with a score of at least `confident`."""
        top, left, bottom, right = view
        found = self.answers(outputs)[0]
        stretch = np.array([right - left, bottom - top] * 2)
        shown = []
        for box in found[found[:, 4] >= self.confident]:
            x0, y0, x1, y1 = (float(v) for v in box[:4] * stretch + np.array([left, top] * 2))
            index = int(box[5])
            shown.append(Box(index=index, label=name_of(index, labels), score=float(box[4]), box=(x0, y0, x1, y1)))
        return Answer(boxes=tuple(shown))

    def lines(self, answer: Answer) -> list[str]:
        """Return a line for each object: score, class, and its corners in pixels."""
        if not answer.boxes:
            return ["no object above the score that counts as sure"]
        places = [" to ".join(f"{x:.0f},{y:.0f}" for x, y in (b.box[:2], b.box[2:])) for b in answer.boxes]
        return [f"{share_line(b.score, b.label)}  {place}" for b, place in zip(answer.boxes, places, strict=True)]

    def _read(self, outputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Probabilities (batch, queries, classes), and boxes (batch, queries, 4) by their corners."""
        what = "(batch, queries, classes)"
        logits = _outputs.chosen(outputs, self.output, ("logits",), 3, what, _FIX).astype(np.float64)
        places = _outputs.chosen(outputs, self.boxes, ("pred_boxes",), 3, "(batch, queries, 4)", _FIX)
        if places.shape != (*logits.shape[:2], 4):
            raise DataError(
                f"the scores are {logits.shape} and the boxes {places.shape}: the model gives "
                f"{_outputs.listed(outputs)}",
                fix=_FIX,
            )
        from scipy.special import expit, softmax

        probabilities = expit(logits) if self.scores == "sigmoid" else softmax(logits, axis=-1)[..., :-1]
        centre, half = places[..., :2].astype(np.float64), places[..., 2:].astype(np.float64) / 2
        return probabilities, np.concatenate([centre - half, centre + half], axis=-1)

    def _best(self, probabilities: Array, boxes: Array) -> Array:
        if self.scores == "sigmoid":
            flat = probabilities.ravel()
            query, kind = np.divmod(np.arange(flat.size), probabilities.shape[1])
        else:
            kind = probabilities.argmax(axis=1)
            query = np.arange(len(kind))
            flat = probabilities[query, kind]
        best = np.argsort(-flat, kind="stable")[: self.max_detections]
        return np.column_stack([boxes[query[best]], flat[best], kind[best]])


def _boxes(label: Label, classes: int) -> Boxes:
    if not isinstance(label, Boxes):
        raise DataError("the labels are no boxes", fix="Give data with images/ and annotations.json.")
    if len(label.classes) and not 0 <= label.classes.min() <= label.classes.max() < classes:
        raise DataError(
            f"{label.name}: its classes go from {label.classes.min()} to {label.classes.max()}, the model has "
            f"{classes}",
            fix="Give categories the model's class indices as id, or its names.",
        )
    return label


def _matched(wanted: Array, candidates: Array) -> int:
    """How many of the boxes find one of their class that overlaps enough; each candidate serves once."""
    left = list(range(len(candidates)))
    count = 0
    for box in wanted:
        overlaps = {i: _overlap(box, candidates[i]) for i in left if candidates[i, 5] == box[5]}
        best = max(overlaps, key=lambda i: overlaps[i], default=None)
        if best is not None and overlaps[best] >= _SAME_BOX:
            left.remove(best)
            count += 1
    return count


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    areas = float(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]))
    return both / (areas - both) if areas > both else 0.0
