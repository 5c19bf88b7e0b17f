"""Object detection: COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import Boxes, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Box
from vitdeploy.evidence.reading import PostProcessing
from vitdeploy.session import Array
from vitdeploy.tasks import (
    PerSample,
    Task,
    Values,
    WeightedMetrics,
    _coco,
    _objects,
    _outputs,
    check_count,
    class_name,
    format_share,
)

_FIX = "Give a detector with queries (DETR, YOLOS), or name its outputs in task.output and task.boxes."


_QUERIES = ("batch", "queries", "classes")
"""The axes of the scores."""

_SIDES = 4
"""The numbers of a box."""


class Detection(Task):
    """Objects, from scores (batch, queries, classes) and boxes (batch, queries, 4): centre, width, height, 0 to 1.

    Boxes may also be (batch, 4, queries), where the number of queries tells the two forms apart.

    Attributes:
        output: names the scores. The default is "logits".
        boxes: names the boxes. The default is "pred_boxes".
        scores: "softmax": the last class is "no object", and each query gives its best other class (DETR, YOLOS).
            "sigmoid": every class of every query is a candidate (Deformable DETR, RT-DETR).
        max_detections: how many boxes of an image count, best first.
        confident: `predict` shows boxes with at least this score, and agreement compares them.
    """

    data: ClassVar[Form] = "boxes"
    metric_names: ClassVar[Mapping[str, str]] = {"map": "mAP", "map50": "mAP at 0.5", "map75": "mAP at 0.75"}
    units: ClassVar[Mapping[str, str]] = {"map": "points", "map50": "points", "map75": "points"}
    ranking_only: ClassVar[frozenset[str]] = frozenset({"score"})
    output: str | None = None
    boxes: str | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"
    max_detections: Annotated[int, Field(ge=1)] = 100
    confident: Annotated[float, Field(gt=0, le=1)] = 0.5

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the boxes of each image, (boxes, 6), best first.

        The six numbers are left, top, right and bottom as shares of the input, score, and class.
        """
        probabilities, boxes = self._read_queries(outputs)
        finite = self.find_finite_answers(outputs)
        return [
            self._choose_best(p, b) if usable else np.zeros((0, 6))
            for p, b, usable in zip(probabilities, boxes, finite, strict=True)
        ]

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the scores and the boxes."""
        return {name: outputs[name] for name in self._find_queries(outputs)}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the F1 of the confident boxes of both sides, matched with overlapping boxes of the same class.

        A box just below the threshold can match one just above it. If neither side has a confident box, the scores of
        their best boxes are compared.
        """
        return _objects.measure_agreement(
            (reference[:, 4], deployed[:, 4]),
            (reference[:, 5], deployed[:, 5]),
            _measure_overlaps(reference[:, :4], deployed[:, :4]),
            self.confident,
        )

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Match each box at COCO's ten overlap thresholds. An image whose outputs are not finite has no boxes."""
        answers = self.read_answers(outputs)
        check_count(len(answers), labels)
        classes = self._read_queries(outputs)[0].shape[2]
        truth = [_check_boxes(label, classes) for label in labels]
        values = _coco.match_boxes(answers, truth, self.max_detections, classes)
        return PerSample(values, answers, self.find_finite_answers(outputs))

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for mAP in percent: over overlaps from 0.5 to 0.95, at 0.5, and at 0.75.

        The mean is over the classes that occur.
        """
        return _objects.weigh_precision(values, ("map", "map50", "map75"))

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find a reference that finds next to nothing."""
        return _objects.find_low_precision(self.aggregate(values), "map50")

    def count_classes(self, shapes: Mapping[str, tuple[int | str, ...]]) -> int | None:
        """Return the classes of the scores, (batch, queries, classes), without "no object"."""
        scores = _outputs.read_size(shapes, self.output, ("logits",), dims=3, axis=2)
        return scores - 1 if scores is not None and self.scores == "softmax" else scores

    def describe_reading(self, shapes: Mapping[str, tuple[int | str, ...]]) -> PostProcessing | None:
        """Return how boxes are chosen among the queries."""
        outputs = _outputs.stand_for(shapes)
        try:
            scores, boxes = self._find_queries(outputs)
        except DataError:
            return None
        queries, classes = outputs[scores].shape[1:]
        softmax = self.scores == "softmax"
        return PostProcessing(
            scores=scores,
            activation=self.scores,
            candidates="best class" if softmax else "every class",
            no_object=classes - 1 if softmax else None,
            top_k=self.max_detections,
            threshold=self.confident,
            boxes=boxes,
            boxes_layout="4, queries" if queries != _SIDES and outputs[boxes].shape[1] == _SIDES else "queries, 4",
            box_form="centre x, centre y, width, height",
            box_unit="share of the input",
        )

    def at_threshold(self, values: Values, threshold: float) -> Values:
        """Return the boxes with at least this score, those of them that match an object (IoU 0.5), and the objects."""
        return _objects.count_at_threshold(values, threshold)

    def summarize_answer(self, answer: Array, names: Sequence[str] | None) -> str:
        """Return the confident boxes by class: `2 cat, 1 dog`."""
        return _objects.summarize_classes(answer[answer[:, 4] >= self.confident, 5], names)

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],
        picture: tuple[int, int] | None = None,  # noqa: ARG002  boxes may leave it
    ) -> Answer:
        """Return the boxes with a score of at least `confident`."""
        top, left, bottom, right = view
        boxes = self.read_answers(outputs)[0]
        size = np.array([right - left, bottom - top] * 2)
        confident = []
        for box in boxes[boxes[:, 4] >= self.confident]:
            x0, y0, x1, y1 = (float(v) for v in box[:4] * size + np.array([left, top] * 2))
            index, score = int(box[5]), float(box[4])
            confident.append(Box(index=index, label=class_name(index, labels), score=score, box=(x0, y0, x1, y1)))
        return Answer(boxes=tuple(confident))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each object: score, class, and its corners in pixels."""
        if not answer.boxes:
            return [f"no object with a score of {100 * self.confident:.0f} % or more"]
        places = [" to ".join(f"{x:.0f},{y:.0f}" for x, y in (b.box[:2], b.box[2:])) for b in answer.boxes]
        return [f"{format_share(b.score, b.label)}  {place}" for b, place in zip(answer.boxes, places, strict=True)]

    def _read_queries(self, outputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return probabilities (batch, queries, classes), and boxes (batch, queries, 4) by their corners."""
        scores, places = self._find_queries(outputs)
        logits, boxes = outputs[scores].astype(np.float64), outputs[places]
        batch, queries = logits.shape[:2]
        if boxes.shape == (batch, 4, queries) and queries != 4:
            boxes = boxes.transpose(0, 2, 1)
        if boxes.shape != (*logits.shape[:2], 4):
            raise DataError(
                f"the scores are {logits.shape} and the boxes {boxes.shape}: the model gives "
                f"{_outputs.list_outputs(outputs)}",
                fix=_FIX,
            )
        from scipy.special import expit, softmax

        probabilities = expit(logits) if self.scores == "sigmoid" else softmax(logits, axis=-1)[..., :-1]
        centre, half = boxes[..., :2].astype(np.float64), boxes[..., 2:].astype(np.float64) / 2
        return probabilities, np.concatenate([centre - half, centre + half], axis=-1)

    def _find_queries(self, outputs: Mapping[str, Array]) -> tuple[str, str]:
        """Return the names of the scores and of the boxes.

        Without names that tell, the boxes are the only output with four numbers for each query.
        """
        scores = self.output or ("logits" if "logits" in outputs else None)
        boxes = self.boxes or ("pred_boxes" if "pred_boxes" in outputs else None)
        others = {n: v.shape[1:] for n, v in outputs.items() if v.ndim == len(_QUERIES) and n not in (scores, boxes)}
        if boxes is None:
            with_four = [name for name, sizes in others.items() if 4 in sizes]
            if len(with_four) > 1:
                raise DataError(
                    f"several outputs may be the boxes, {' and '.join(with_four)}: the model gives "
                    f"{_outputs.list_outputs(outputs)}",
                    fix=_FIX,
                )
            boxes = next(iter(with_four), None)
        if scores is None:
            scores = next((name for name in others if name != boxes), None)
        form = f"({', '.join(_QUERIES)})"
        scores = _outputs.find_output(outputs, scores, (), len(_QUERIES), form, _FIX)
        return scores, _outputs.find_output(outputs, boxes, (), len(_QUERIES), "(batch, queries, 4)", _FIX)

    def _choose_best(self, probabilities: Array, boxes: Array) -> Array:
        best = _objects.rank_candidates(probabilities, self.max_detections, every_class=self.scores == "sigmoid")
        return np.column_stack([boxes[best.queries], best.scores, best.classes])


def _check_boxes(label: Label, classes: int) -> Boxes:
    if not isinstance(label, Boxes):
        raise DataError("the labels are not boxes", fix="Give data with images/ and annotations.json.")
    _objects.check_classes(label.name, label.classes, classes)
    return label


def _measure_overlaps(a: Array, b: Array) -> Array:
    """Return the intersection over union of boxes (n, 4) and (m, 4), by their corners: (n, m)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = np.maximum(sides, 0).prod(axis=-1)
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(axis=1)[None]
    union = areas - both
    overlaps: Array = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return overlaps
